"""The configuration of serving: a YAML file, every problem reported at once; without one, what is written here."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from neuroweaver import config_files
from neuroweaver.errors import ConfigError
from neuroweaver.routing.baking import RULES, BakeRules

FOLDER = "configs/serving"


class ServingConfig(BaseModel):
    """How deployments are treated; `bake` is for those that bring no rules of their own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bake: BakeRules = RULES


def load_config(path: Path | None) -> ServingConfig:
    """Raises ConfigError with every problem found."""
    if path is None:
        return ServingConfig()
    values = config_files.read_values(path, FOLDER)
    try:
        return ServingConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(config_files.problems(error, ServingConfig))) from None
