"""Configurations as YAML files: read, and every problem in the words of the file, with what was probably meant."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from neuroweaver.errors import ConfigError
from neuroweaver.settings import describe


def read_values(path: Path, folder: str) -> dict[str, Any]:
    """The keys and values of `path`. Raises ConfigError; for a file that is not there, with those of `folder`."""
    if not path.is_file():
        known = sorted(str(file) for file in Path(folder).glob("*.yaml"))
        raise ConfigError(f"no config file {str(path)!r}" + (f": there are {', '.join(known)}" if known else ""))
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold keys and values, got {type(values).__name__}")
    return values


def problems(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """A line for each problem of values for `model`; for an unknown key with the one that was meant, or all of them."""
    return [line + suggestion(line, model) for line in describe(error)]


def suggestion(line: str, model: type[BaseModel]) -> str:
    """Nothing where `line` is not about an unknown key."""
    where, _, what = line.partition(": ")
    if what != "unknown key":
        return ""
    *sections, key = where.split(".")
    for section in sections:
        annotation = model.model_fields[section].annotation if section in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        model = annotation
    near = difflib.get_close_matches(key, model.model_fields, n=1)
    return f" (did you mean {near[0]!r}?)" if near else f" (allowed: {', '.join(model.model_fields)})"
