"""A training job: what a worker needs to know, and the function that trains, wherever it runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from neuroweaver import adapter, base_model, files, memory
from neuroweaver.tasks import task_named
from pipelines import dataset, finetune
from pipelines.config import FinetuneConfig
from pipelines.encoding import Example, encode


@dataclass(frozen=True)
class Job:
    """One fine-tune. Everything in it is a plain value, so that it travels to any worker."""

    id: str
    home: Path
    config: FinetuneConfig
    dataset_ids: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return self.home / "jobs" / self.id

    @property
    def adapter_folder(self) -> Path:
        return self.folder / "adapter"

    @property
    def cpus(self) -> int:
        return self.config.ray.cpus_per_worker or len(os.sched_getaffinity(0))


def train(job: Job) -> Iterator[dict[str, Any]]:
    """Fine-tune and leave the adapter in `job.adapter_folder`; yields each event as a plain dict.

    Called again after an interruption, it goes on from the newest whole checkpoint.
    """
    torch.set_num_threads(job.cpus)
    memory.keep_freed()
    config = job.config
    base = base_model.locate(config.base_model, job.home)
    model, tokenizer = base_model.load(base)
    model.requires_grad_(False)
    train_rows, validation_rows = training_rows(job)
    train_examples = encode_rows(tokenizer, train_rows, config.training.max_tokens)
    validation_examples = encode_rows(tokenizer, validation_rows, config.training.max_tokens)
    yield {"event": "Loaded", "train": len(train_examples), "validation": len(validation_examples)}
    for event in finetune.finetune(
        model,
        train_examples,
        validation_examples,
        lora=config.lora,
        training=config.training,
        seed=config.seed,
        pad=tokenizer.eos_token_id,
        checkpoints=job.folder / "checkpoints",
    ):
        if isinstance(event, finetune.Finished):
            _write_adapter(job, model, base, event)
        yield {"event": type(event).__name__, **_plain(event)}


def training_rows(job: Job) -> tuple[list[dataset.DatasetRow], list[dataset.DatasetRow]]:
    """The job's training and validation rows, at most `data[i].max_rows` and `eval_rows` of them."""
    train_rows: list[dataset.DatasetRow] = []
    validation_rows: list[dataset.DatasetRow] = []
    for identity, source in zip(job.dataset_ids, job.config.data, strict=True):
        stored = dataset.load(identity, job.home)
        train_rows += dataset.choose(stored.side("train"), source.max_rows)
        validation_rows += stored.side("validation")
    return train_rows, dataset.choose(validation_rows, job.config.training.eval_rows)


def encode_rows(tokenizer: Any, rows: list[dataset.DatasetRow], max_tokens: int) -> list[Example]:
    """Tokenised rows; a stored dataset may hold rows longer than this run's `max_tokens`, which are left out."""
    encoded = (encode(tokenizer, task_named(row.task), row.values, row.absent) for row in rows)
    return [example for example in encoded if len(example) <= max_tokens]


def _write_adapter(job: Job, model: Any, base: base_model.BaseModel, event: finetune.Finished) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in event.weights.items()}
    config = dict(model.peft_config["default"].to_dict())
    config |= {"inference_mode": True, "base_model_name_or_path": base.name}
    shutil.rmtree(job.adapter_folder, ignore_errors=True)
    with files.new_folder(job.adapter_folder) as folder:
        save_file(tensors, folder / adapter.WEIGHTS, metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, default=sorted), encoding="utf-8")
        adapter.write_manifest(
            folder,
            model_type=job.config.model_type,
            tasks=tuple(sorted({row.task for row in training_rows(job)[0]})),
            base_model=base.name,
            base_sha256=base.sha256,
            dataset_ids=job.dataset_ids,
            job_id=job.id,
        )


def _plain(event: finetune.Event) -> dict[str, Any]:
    fields = {name: value for name, value in vars(event).items() if name != "weights"}
    return {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}


def pack(job: Job) -> dict[str, Any]:
    """The job as JSON values."""
    return {**asdict(job), "home": str(job.home), "config": job.config.model_dump(mode="json")}


def unpack(values: dict[str, Any]) -> Job:
    return Job(
        id=values["id"],
        home=Path(values["home"]),
        config=FinetuneConfig.model_validate(values["config"]),
        dataset_ids=tuple(values["dataset_ids"]),
    )
