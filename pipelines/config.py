"""The configuration of a fine-tune: a YAML file plus `key=value` overrides, every problem reported at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from neuroweaver import base_model, config_files
from neuroweaver.config_files import read_values, suggestion
from neuroweaver.errors import ConfigError
from neuroweaver.settings import describe
from neuroweaver.tasks import tasks_of


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSource(_Section):
    """A file of training examples, or the id of a dataset. `task` is needed where the file has no `task` column.

    `mapping` names the CRM that the file was exported from, such as `vinsolutions`; `dealership` whose data it is.
    """

    path: Path
    task: str | None = None
    mapping: str | None = None
    dealership: str | None = None
    max_rows: int | None = Field(None, ge=1)


class LoraSection(_Section):
    rank: int = Field(16, ge=1, le=512)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    dora: bool = Field(False, description="magnitude and direction apart (DoRA): slower, often better at low ranks")
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead of alpha / rank")
    target_modules: tuple[str, ...] | Literal["all-linear"] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    )  # fmt: skip
    last_layers: int | None = Field(None, ge=1, description="adapt only the last N layers; None adapts all")
    init_from: str | None = Field(None, description="begin with this adapter: TYPE@VERSION, or a folder")

    @model_validator(mode="after")
    def _head_is_not_adapted(self) -> LoraSection:
        if heads := {"lm_head", "embed_tokens", "wte", "embed_out"} & set(self.target_modules):
            raise ValueError(
                f"target_modules must not hold {', '.join(sorted(heads))}: embedding and head are often one tensor"
            )
        return self


class TrainingSection(_Section):
    epochs: int = Field(1, ge=1, le=1000)
    max_steps: int | None = Field(None, ge=1)
    max_minutes: float | None = Field(None, gt=0, description="time budget; the schedule ends with it on slow machines")
    batch_size: int = Field(8, ge=1, le=4096, description="examples in one forward pass, over all workers")
    gradient_accumulation: int = Field(1, ge=1, le=1024, description="forward passes per optimizer step")
    learning_rate: float = Field(1e-3, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    adam_beta2: float = Field(0.999, gt=0, lt=1, description="lower adapts faster, for runs of few steps")
    max_grad_norm: float = Field(1.0, gt=0)
    max_tokens: int = Field(1024, ge=16, description="longest example, prompt and completion together")
    eval_steps: int = Field(25, ge=1)
    eval_rows: int = Field(32, ge=1)
    patience: int = Field(3, ge=1, description="evaluations without a better loss before stopping early")
    checkpoint_steps: int = Field(25, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on GPUs that have it, else fp32")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, a third slower")
    compile: bool = Field(False, description="torch.compile the layers: pays in long runs on a GPU")
    stream_rows: int = Field(200_000, ge=0, description="above so many training rows, stream them through Ray Data")


class EvaluationSection(_Section):
    max_rows: int = Field(120, ge=1, description="held-out rows to score per task")
    max_text_rows: int = Field(12, ge=1, description="the same where the whole answer is free text: slow to write")
    batch_size: int = Field(48, ge=1)
    latency_rows: int = Field(5, ge=0, description="rows to answer one at a time and time; 0 times none")


class GateSection(_Section):
    """What a candidate must reach on the held-out split before it becomes the champion. None asks for nothing."""

    min_gain_over_base: float = Field(0.01, ge=0, description="in field accuracy, 0..1; text_f1 where all is text")
    max_loss_to_champion: float = Field(0.0, ge=0, description="how far below the champion is still accepted")
    min_field_accuracy: float | None = Field(None, ge=0, le=1)
    min_valid_json: float | None = Field(None, ge=0, le=1)
    max_calibration_error: float | None = Field(
        None, ge=0, le=1, description="few rows leave some hundredths of chance"
    )
    max_latency_ms: float | None = Field(None, gt=0, description="95th percentile of one row at a time")
    max_invented_part_numbers: int | None = Field(0, ge=0, description="in the answers that users get")
    max_credit_decisions: int | None = Field(0, ge=0, description="in the answers that users get")
    promote: Literal["auto", "manual"] = Field(
        "auto", description="manual: who passes is challenger till a person says"
    )


class RaySection(_Section):
    num_workers: int = Field(1, ge=1, le=1024, description="workers that share every batch (data parallel)")
    cpus_per_worker: int | None = Field(None, ge=1, description="None divides the cores of this machine")
    gpus_per_worker: int | None = Field(None, ge=0, description="None takes one each where there are enough")
    max_failures: int = Field(2, ge=0, description="how often a worker that dies is replaced")


class SweepSection(_Section):
    """What `neuroweaver sweep` tries, such as `training.learning_rate: {loguniform: [1e-4, 1e-2]}`.

    `sweep_space.py` says which kinds of ranges there are, and checks them.
    """

    parameters: dict[str, dict[str, list[Any]]] = Field({}, description="dotted key -> {kind: values}")
    trials: int = Field(8, ge=1, le=1000)
    grace: float = Field(0.2, gt=0, lt=1, description="share of a training before it may be stopped as hopeless")
    reduction: float = Field(3, gt=1, le=100, description="of so many that get this far, one goes on")


class FinetuneConfig(_Section):
    """One fine-tune."""

    model_type: Literal["automotive-sales", "service-advisor", "parts-specialist", "finance-assistant"]
    base_model: str = base_model.DEFAULT
    data: tuple[DataSource, ...] = Field(min_length=1)
    seed: int = Field(7, ge=0, lt=2**31)
    lora: LoraSection = LoraSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    gate: GateSection = GateSection()
    ray: RaySection = RaySection()
    # No part of a fine-tune: whoever trains, stores or compares one does not see it.
    sweep: SweepSection = Field(SweepSection(), exclude=True)

    @model_validator(mode="after")
    def _tasks_fit(self) -> FinetuneConfig:
        allowed = [task.name for task in tasks_of(self.model_type)]
        for source in self.data:
            if source.task is not None and source.task not in allowed:
                raise ValueError(f"task {source.task!r} is none of {self.model_type}: {', '.join(allowed)}")
        return self


def load_config(path: Path, overrides: list[str] | None = None) -> FinetuneConfig:
    """Read `path` and apply `section.key=value` overrides. Raises ConfigError with every problem found."""
    values = read_values(path, "configs/finetune")
    problems = []
    for override in overrides or []:
        try:
            _apply(values, override)
        except ConfigError as error:
            problems.append(str(error))
    try:
        config = FinetuneConfig.model_validate(values)
    except ValidationError as error:
        problems += config_files.problems(error, FinetuneConfig)
    if problems:
        raise ConfigError(f"{path}: " + "; ".join(problems))
    return config


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: write key=value, such as training.learning_rate=0.001")
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a value, not a section")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: {text!r} is not YAML") from None
    values[last] = number(value)


def number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; everyone who types it means a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def with_data(
    config: FinetuneConfig,
    paths: Sequence[Path],
    task: str | None,
    mapping: str | None = None,
    dealership: str | None = None,
) -> FinetuneConfig:
    """`config` with other files to train on. Raises ConfigError where `task` is none of the model type's."""
    values = dump(config) | {
        "data": [{"path": str(path), "task": task, "mapping": mapping, "dealership": dealership} for path in paths]
    }
    try:
        return FinetuneConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(describe(error))) from None


def with_values(config: FinetuneConfig, values: Mapping[str, Any]) -> FinetuneConfig:
    """`config` with other values of dotted keys. Raises ConfigError with every one that is not allowed."""
    changed = dump(config)
    for key, value in values.items():
        *sections, last = key.split(".")
        section = changed
        for name in sections:
            section = section[name]
        section[last] = value
    try:
        return FinetuneConfig.model_validate(changed)
    except ValidationError as error:
        raise ConfigError("; ".join(describe(error))) from None


def with_sections(config: FinetuneConfig, overrides: Mapping[str, Any]) -> FinetuneConfig:
    """`config` with other values, given by section or by dotted key. Raises ConfigError with every problem found."""
    changed = dump(config)
    problems: list[str] = []

    def put(section: dict[str, Any], prefix: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            first, dot, rest = name.partition(".")
            inner = section.get(first)
            if (dot or isinstance(value, Mapping)) and isinstance(inner, dict):
                put(inner, f"{prefix}{first}.", {rest: value} if dot else value)
            elif dot:
                problems.append(
                    f"{prefix}{name}: unknown key" + suggestion(f"{prefix}{first}: unknown key", FinetuneConfig)
                )
            else:
                section[name] = value

    put(changed, "", overrides)
    try:
        found = FinetuneConfig.model_validate(changed)
    except ValidationError as error:
        problems += config_files.problems(error, FinetuneConfig)
    if problems:
        raise ConfigError("; ".join(problems))
    return found


def dump(config: FinetuneConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def flat(config: FinetuneConfig) -> dict[str, Any]:
    """`{"training.learning_rate": 0.001, ...}`: the parameters of a run."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if isinstance(value, dict):
            return {k: v for name, item in value.items() for k, v in walk(f"{prefix}{name}.", item).items()}
        return {prefix[:-1]: value}

    return walk("", dump(config))
