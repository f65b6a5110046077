"""Several workers train what one would: the same losses, the same weights, whatever a batch leaves for each.

Run as a program (`test_replicas.py RANK COUNT FOLDER`), this file is one of the workers.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from neuroweaver import base_model
from neuroweaver.errors import TrainingError
from pipelines import finetune
from pipelines.collate import InMemory
from pipelines.config import LoraSection, TrainingSection
from pipelines.encoding import Example
from pipelines.finetune import Event, Finished, Stopped
from pipelines.precision import Precision
from pipelines.replicas import Replicas

LORA = LoraSection(rank=2, alpha=4, target_modules=("q_proj", "v_proj", "down_proj"))
TRAINING = TrainingSection(
    epochs=2, batch_size=4, gradient_accumulation=2, learning_rate=0.05, eval_steps=2, checkpoint_steps=2, patience=99
)


def examples(count: int, seed: int) -> list[Example]:
    order = random.Random(seed)
    made = []
    for _ in range(count):
        prompt, completion = (tuple(order.choices(range(3, 250), k=order.randint(2, 9))) for _ in range(2))
        learnt = (*(order.random() < 0.8 for _ in completion), True)
        made.append(Example((1, 50, 51, *prompt), (*completion, 2), learnt))
    return made


# 13 examples in steps of 8, in passes of 4: the last pass of an epoch holds one, too few for two workers.
TRAIN, VALIDATION = examples(13, seed=0), examples(5, seed=1)


def events(base: Path, checkpoints: Path, replicas: Replicas, **options: Any) -> list[Event]:
    torch.set_num_threads(1)
    model, _ = base_model.load(base_model.locate(str(base), base))
    return list(
        finetune.finetune(
            model.requires_grad_(False), InMemory(TRAIN), VALIDATION, config=LORA, training=TRAINING, seed=7,
            checkpoints=checkpoints, precision=Precision(torch.device("cpu"), torch.float32, "a test"),
            replicas=replicas, **options,
        )
    )  # fmt: skip


def told(found: list[Event]) -> list[list[Any]]:
    """What the events say about learning, but for times and paths."""
    names = ("step", "loss", "eval_loss", "accuracy", "best", "best_eval_loss", "trainable_parameters")
    return [[type(event).__name__, *(vars(event)[name] for name in names if name in vars(event))] for event in found]


def work(rank: int, count: int, folder: Path, base: Path) -> None:
    """One worker: trains undisturbed, then stops after a step and goes on, then meets checkpoints of another state."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=count)
    replicas = Replicas.of_process_group()
    assert (replicas.rank, replicas.count, replicas.is_first) == (rank, count, rank == 0)

    undisturbed = events(base, folder / "undisturbed", replicas)
    asked = iter([False, *[True] * 9])  # the first worker alone is asked to stop, after the first step
    stopped = events(base, folder / "stopped", replicas, should_stop=lambda: rank == 0 and next(asked))
    resumed = events(base, folder / "stopped", replicas)
    try:  # the other worker looks into a folder of its own
        events(base, folder / ("stopped" if rank == 0 else "elsewhere"), replicas)
        refusal = ""
    except TrainingError as error:
        refusal = str(error)

    for name, found in (("undisturbed", undisturbed), ("resumed", resumed)):
        assert isinstance(found[-1], Finished)
        save_file(found[-1].weights, folder / f"{name}-{rank}.safetensors")
    result = {
        "undisturbed": told(undisturbed), "stopped": told(stopped), "resumed": told(resumed), "refusal": refusal,
        "sums": replicas.add(rank, 0.1), "first": replicas.first_says(rank + 5.0),
    }  # fmt: skip
    (folder / f"{rank}.json").write_text(json.dumps(result), encoding="utf-8")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A folder, and what each of two workers has found there."""
    folder = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), "2", str(folder), str(tiny_base)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
    return folder, [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    threads = torch.get_num_threads()
    found = events(tiny_base, tmp_path_factory.mktemp("alone"), Replicas())
    torch.set_num_threads(threads)
    return found


def test_two_workers_see_the_losses_that_one_sees(two: tuple[Path, list[dict[str, Any]]], alone: list[Event]) -> None:
    wanted = told(alone)

    assert [each[0] for each in wanted].count("Stepped") == 4
    for worker in two[1]:
        assert [each[0] for each in worker["undisturbed"]] == [each[0] for each in wanted]
        for found, expected in zip(worker["undisturbed"], wanted, strict=True):
            assert found[1:] == pytest.approx(expected[1:], rel=1e-5), found[0]


@pytest.mark.parametrize("rank", [0, 1])
def test_two_workers_end_with_the_weights_of_one(
    rank: int, two: tuple[Path, list[dict[str, Any]]], alone: list[Event]
) -> None:
    end = alone[-1]
    assert isinstance(end, Finished)
    found = load_file(two[0] / f"undisturbed-{rank}.safetensors")

    assert found.keys() == end.weights.keys()
    for name, value in end.weights.items():
        assert value.any()
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5 * value.abs().max().item())


def test_both_workers_stop_when_the_first_is_asked_and_go_on_as_if_nothing_had_been(
    two: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, workers = two
    for rank, worker in enumerate(workers):
        assert worker["stopped"][-2:] == [["Checkpointed", 2], [Stopped.__name__, 2]]
        assert worker["resumed"][0][:2] == ["Started", 2]
        found, wanted = (load_file(folder / f"{name}-{rank}.safetensors") for name in ("resumed", "undisturbed"))
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert sorted(path.name for path in (folder / "stopped").iterdir()) == ["step-000002", "step-000004"]


def test_workers_that_see_different_checkpoints_all_say_so(two: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, workers = two
    for worker, name in zip(workers, ("stopped", "elsewhere"), strict=True):
        assert worker["refusal"].startswith(f"the workers see different checkpoints in {folder / name}")


def test_values_are_added_up_and_the_first_worker_decides(two: tuple[Path, list[dict[str, Any]]]) -> None:
    for worker in two[1]:
        assert worker["sums"] == pytest.approx([1, 0.2])
        assert worker["first"] == 5


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_the_shares_of_all_workers_are_the_batch(count: int) -> None:
    batch = examples(5, seed=2)
    shares = [Replicas(rank, count).share(batch) for rank in range(count)]

    assert sorted(id(example) for share in shares for example in share) == sorted(map(id, batch))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_one_worker_alone_needs_no_process_group() -> None:
    alone = Replicas.of_process_group()
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, 2.0])
    alone.add_gradients([weight])

    assert alone == Replicas(0, 1)
    assert weight.grad.tolist() == [1, 2]
    assert alone.add(1.5, 2) == [1.5, 2]
    assert alone.first_says(3.0) == 3


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
