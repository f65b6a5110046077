"""A training job: what a worker needs to know, and the function that trains, wherever it runs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from neuroweaver import adapter, base_model, files, memory
from neuroweaver.errors import TrainingError
from neuroweaver.tasks import task_named
from pipelines import dataset, finetune
from pipelines import precision as precisions
from pipelines.collate import InMemory, Source
from pipelines.config import FinetuneConfig
from pipelines.encoding import Example, encode
from pipelines.replicas import Replicas


@dataclass(frozen=True)
class Job:
    """One fine-tune. Everything in it is a plain value, so that it travels to any worker."""

    id: str
    home: Path
    config: FinetuneConfig
    dataset_ids: tuple[str, ...]
    local: bool = False  # in the process that was called, without Ray

    @property
    def folder(self) -> Path:
        return self.home / "jobs" / self.id

    @property
    def adapter_folder(self) -> Path:
        return self.folder / "adapter"

    @property
    def stop_file(self) -> Path:
        """Whoever makes it asks the workers to save a checkpoint and stop."""
        return self.folder / "stop"

    @property
    def finished_file(self) -> Path:
        """Holds the seconds that training took, once it is done."""
        return self.folder / "finished"

    @property
    def cpus(self) -> int:
        """Cores for each worker."""
        ray = self.config.ray
        return ray.cpus_per_worker or max(1, len(os.sched_getaffinity(0)) // ray.num_workers)

    @property
    def streams(self) -> bool:
        """Whether its training rows are too many to hold: they are read from the datasets again in every epoch."""
        stored = [dataset.load(identity, self.home) for identity in self.dataset_ids]
        return sum(one.count("train") for one in stored) > self.config.training.stream_rows


def train(
    job: Job,
    *,
    replicas: Replicas = Replicas(),  # noqa: B008
    source: Source | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[dict[str, Any]]:
    """Fine-tune and leave the adapter in `job.adapter_folder`; yields each event as a plain dict.

    Called again after an interruption, it goes on from the newest whole checkpoint. `source` gives the training
    examples where they don't fit into memory. Raises TrainingError with the reason where training can't go on.
    """
    torch.set_num_threads(job.cpus)
    memory.keep_freed()
    config = job.config
    precision = precisions.choose(config.training.precision)
    base = base_model.locate(config.base_model, job.home)
    with _memory_errors(job):
        model, tokenizer = base_model.load(base)
        model.requires_grad_(False)
        validation = encode_rows(tokenizer, validation_rows(job), config.training.max_tokens)
        if source is None:
            source = InMemory(encode_rows(tokenizer, training_rows(job), config.training.max_tokens))
        yield {"event": "Loaded", "train": source.examples, "validation": len(validation)}
        for event in finetune.finetune(
            model,
            source,
            validation,
            config=config.lora,
            training=config.training,
            seed=config.seed,
            checkpoints=job.folder / "checkpoints",
            precision=precision,
            replicas=replicas,
            start_from=_started_from(job),
            should_stop=should_stop or job.stop_file.exists,
        ):
            if isinstance(event, finetune.Finished) and replicas.is_first:
                _write_adapter(job, model, base, event)
            yield {"event": type(event).__name__, **_plain(event)}


@contextlib.contextmanager
def _memory_errors(job: Job) -> Iterator[None]:
    """Say what to do where the memory of the machine or its GPU does not suffice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not memory.ran_out(error):
            raise
        training = job.config.training
        raise TrainingError(
            f"not enough memory for batches of {training.batch_size} examples of up to {training.max_tokens} tokens: "
            "lower training.batch_size (and raise training.gradient_accumulation), or set "
            "training.gradient_checkpointing=true"
        ) from error


def _started_from(job: Job) -> Path | None:
    """The adapter to begin with, where one was asked for: a copy of it lies in the job's folder."""
    folder = job.folder / "init"
    return folder if folder.is_dir() else None


def training_rows(job: Job) -> list[dataset.DatasetRow]:
    """The job's training rows, at most `data[i].max_rows` of each dataset."""
    rows: list[dataset.DatasetRow] = []
    for identity, source in zip(job.dataset_ids, job.config.data, strict=True):
        rows += dataset.choose(dataset.load(identity, job.home).side("train"), source.max_rows)
    return rows


def validation_rows(job: Job) -> list[dataset.DatasetRow]:
    """The job's validation rows, at most `eval_rows` of them, of every task its share."""
    rows = [row for identity in job.dataset_ids for row in dataset.load(identity, job.home).side("validation")]
    return dataset.choose(rows, job.config.training.eval_rows)


def encode_rows(tokenizer: Any, rows: list[dataset.DatasetRow], max_tokens: int) -> list[Example]:
    """Tokenised rows; a stored dataset may hold rows longer than this run's `max_tokens`, which are left out."""
    encoded = (encode(tokenizer, task_named(row.task), row.values, row.absent) for row in rows)
    return [example for example in encoded if len(example) <= max_tokens]


def trained_tasks(job: Job) -> tuple[str, ...]:
    """The tasks of the job's training rows."""
    counts = [dataset.load(identity, job.home).counts for identity in job.dataset_ids]
    return tuple(sorted({task for count in counts for task, side in count if side == "train"}))


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
            tasks=trained_tasks(job),
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
        local=bool(values.get("local", False)),
    )
