"""Training examples that are too many to hold: Ray Data reads and tokenises them while the workers train."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from neuroweaver import base_model, files
from neuroweaver.tasks import task_named
from pipelines.collate import like_batches
from pipelines.encoding import Example, encode
from pipelines.job import Job

_WINDOW = 32  # batches that are sorted and shuffled together
_CORES = 2  # what Ray Data asks for to read and to tokenise; with fewer it waits for ever


def cores(job: Job) -> int:
    """What a job's workers need, and beside them the stream that each of them reads."""
    return job.config.ray.num_workers * (job.cpus + (_CORES if job.streams else 0))


class Streamed:
    """A Ray Data iterator over encoded examples, as a Source: rows in the order of the file, shuffled in windows."""

    def __init__(self, shard: Any, examples: int) -> None:
        self._shard = shard
        self.examples = examples

    def steps_per_epoch(self, batch_size: int) -> int:
        return -(-self.examples // batch_size)

    def epoch(self, number: int, batch_size: int, seed: int, start: int = 0) -> Iterator[list[Example]]:
        window: list[Example] = []
        done = 0
        for row in self._shard.iter_rows():
            window.append(Example(tuple(row["prompt"]), tuple(row["completion"]), tuple(row["learnt"])))
            if len(window) == _WINDOW * batch_size:
                yield from _shuffled(window, batch_size, f"{seed}/{number}/{done}")[max(0, start - done) :]
                done += _WINDOW
                window = []
        if window:
            yield from _shuffled(window, batch_size, f"{seed}/{number}/{done}")[max(0, start - done) :]


def _shuffled(window: list[Example], batch_size: int, seed: str) -> list[list[Example]]:
    made = like_batches(window, batch_size)
    random.Random(seed).shuffle(made)
    return made


def in_order() -> Any:
    """Execution options that give the same rows in the same order each time."""
    import ray.data

    options = ray.data.ExecutionOptions()
    options.preserve_order = True
    return options


def examples(job: Job) -> Any:
    """The job's training rows as a Ray dataset of token ids; nothing is read yet."""
    import logging

    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    paths = [str(job.home / "datasets" / identity / "rows.parquet") for identity in job.dataset_ids]
    encoder = {"base_model": job.config.base_model, "home": job.home, "max_tokens": job.config.training.max_tokens}
    rows = ray.data.read_parquet(paths, columns=["task", "split", "values", "absent"])
    return rows.map_batches(_Encoder, fn_constructor_kwargs=encoder, concurrency=1, batch_format="pyarrow")


def count(job: Job, streamed: Any) -> int:
    """How many examples the stream has: counted once per job, since a longest length is known only by tokenising."""
    noted = job.folder / "streamed.json"
    if noted.is_file():
        return int(json.loads(noted.read_text(encoding="utf-8"))["examples"])
    found = int(streamed.count())
    files.write_text(noted, json.dumps({"examples": found}))
    return found


class _Encoder:
    """Tokenises the training rows of a block; rows of other sides and rows that are too long are left out."""

    def __init__(self, base_model: str, home: Any, max_tokens: int) -> None:
        self._tokenizer = _tokenizer(base_model, home)
        self._max_tokens = max_tokens

    def __call__(self, block: Any) -> Any:
        import pyarrow as pa

        made = [
            encode(self._tokenizer, task_named(row["task"]), json.loads(row["values"]), tuple(row["absent"]))
            for row in block.to_pylist()
            if row["split"] == "train"
        ]
        kept = [example for example in made if len(example) <= self._max_tokens]
        return pa.table(
            {
                "prompt": pa.array([e.prompt for e in kept], pa.list_(pa.int32())),
                "completion": pa.array([e.completion for e in kept], pa.list_(pa.int32())),
                "learnt": pa.array([e.learnt for e in kept], pa.list_(pa.bool_())),
            }
        )


def _tokenizer(name: str, home: Any) -> Any:
    return base_model.load_tokenizer(base_model.locate(name, home, verify=False))
