"""How fast a fine-tune is, beside TRL's on the same batches and beside what the machine's products allow.

    neuroweaver bench training
    neuroweaver bench training --steps 4 --last-layers 16 --json

Sales leads, LoRA on every linear layer, fp32, loss on completions alone. Every contender is a process of its own, and
they take turns of one step (`turns.py`), so a neighbour's noise meets all of them. The first step of each is left out
of the speeds, unless there is only one. TRL gets our batches, already sorted by length; nobody writes checkpoints or
validates between steps. TRL tuned is the faster, in the first two steps, of padded rows and of `padding_free`.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import random
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks import contenders, limit
from benchmarks.contenders import CPU, Plan
from benchmarks.turns import Contender
from neuroweaver import base_model, memory
from neuroweaver.errors import TrainingError, UsageError
from neuroweaver.tasks import LEAD_QUALIFICATION
from pipelines import finetune, lora, packed
from pipelines.collate import batches
from pipelines.config import LoraSection, TrainingSection
from pipelines.encoding import Example, encode
from pipelines.validate import validate_file

LEADS = Path(__file__).parents[1] / "datasets" / "sales" / "lead_qualification.csv"
VALIDATION_ROWS = 16
HOW_TO_INSTALL = "TRL is not installed, so only our loop is measured: pip install 'neuroweaver[bench]'"
TRL_DEFAULT: dict[str, Any] = {}  # gradient checkpointing on
TRL_TUNED: dict[str, dict[str, Any]] = {
    "padded rows": {"gradient_checkpointing": False},
    "padding_free": {"gradient_checkpointing": False, "padding_free": True},
}
_RACED_STEPS = 2
_SAME_LOSS = 1e-3  # relative difference of the first losses, before any weight has changed

Say = Callable[[str], None]


@dataclass
class Course:
    """One contender's run: seconds and loss (for the products: operations per second) of each step."""

    seconds: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    validation_loss: float | None = None


def has_trl() -> bool:
    return importlib.util.find_spec("trl") is not None


def run(
    home: Path,
    *,
    steps: int = 8,
    batch_size: int = 8,
    last_layers: int | None = None,
    repeat: int = 1,
    seed: int = 7,
    base: str = base_model.DEFAULT,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """All contenders, `repeat` times with a seed more each. Raises UsageError where there are too few leads."""
    memory.spin_briefly()  # for the contenders: one that waits must not spin on the others' cores
    if not has_trl():
        say(HOW_TO_INSTALL)
    found = base_model.locate(base, home)
    model, tokenizer = base_model.load(found)
    model.requires_grad_(False)
    config = LoraSection(last_layers=last_layers)
    training = TrainingSection(
        batch_size=batch_size, max_steps=steps, eval_steps=10**9, checkpoint_steps=10**9, precision="fp32"
    )
    torch.manual_seed(seed)
    peft_model = lora.add(model, config)
    examples = leads(tokenizer)
    if len(examples) < steps * batch_size + VALIDATION_ROWS:
        most = (len(examples) - VALIDATION_ROWS) // batch_size
        raise UsageError(f"--steps {steps}: the sample leads are enough for {most} steps of {batch_size}")
    races = []
    with tempfile.TemporaryDirectory(prefix="neuroweaver-bench-") as folder:
        start = Path(folder) / "start"
        contenders.save(lora.weights(peft_model), start)
        packed.enable(model, examples[:2])
        lora.merge_in_forward(peft_model)
        for number in range(repeat):
            mixed = random.Random(seed + number).sample(examples, steps * batch_size + VALIDATION_ROWS)
            ordered = batches(mixed[VALIDATION_ROWS:], batch_size, seed + number, 0)
            plan = Plan(
                found,
                tuple(map(tuple, ordered)),
                tuple(mixed[:VALIDATION_ROWS]),
                config,
                training,
                seed + number,
                start,
            )
            if repeat > 1:
                say(f"round {number + 1} of {repeat}")
            races.append(race(plan, peft_model, Path(folder) / str(number), say))
    return summary(races, peft_model, seed=seed, base=found.title)


def gemm_flops(rows: int = 1024) -> float:
    """fp32 operations per second of products as the default model's MLP has them (576 x 1536)."""
    return contenders.rate(torch.randn(rows, 576), torch.randn(1536, 576), times=100)


def leads(tokenizer: Any) -> list[Example]:
    """The sample leads as token ids."""
    rows = validate_file(LEADS, model_type="automotive-sales", data_format="csv").rows
    return [encode(tokenizer, LEAD_QUALIFICATION, row.values, row.absent) for row in rows]


@dataclass(frozen=True)
class Race:
    plan: Plan
    courses: dict[str, Course]
    tuned: str | None  # which settings of TRL_TUNED were kept


def race(plan: Plan, peft_model: Any, folder: Path, say: Say) -> Race:
    """One step of each contender after the other, until all are through; then the losses of their adapters."""
    steps = len(plan.batches)
    rows = statistics.median_high(limit.tokens(batch, shared_once=True) for batch in plan.batches)
    started = [
        Contender("ours", contenders.ours, plan, folder / "ours"),
        Contender("products", contenders.gemm, limit.shapes(peft_model), rows, steps),
    ]
    if has_trl():
        settings = {"trl default": TRL_DEFAULT} | {f"trl {name}": values for name, values in TRL_TUNED.items()}
        started[1:1] = [Contender(name, contenders.trl, plan, folder / name, one) for name, one in settings.items()]
    running = {contender.name: contender for contender in started}
    courses = {contender.name: Course() for contender in started}
    tuned = None
    try:
        for contender in started:
            contender.wait()
        for step in range(steps):
            for name, contender in running.items():
                seconds, value = contender.step()
                courses[name].seconds.append(seconds)
                courses[name].values.append(value)
            say(_progress(step + 1, steps, courses, running))
            if step == 0:
                require_same_start(courses)
            if has_trl() and step + 1 == min(steps, _RACED_STEPS):
                tuned = min(TRL_TUNED, key=lambda name: courses[f"trl {name}"].seconds[-1])
                for name in set(TRL_TUNED) - {tuned}:
                    running.pop(f"trl {name}").stop()
        for name, contender in running.items():
            contender.finish()
            if name != "products":
                courses[name].validation_loss = validation_loss(plan, peft_model, folder / name)
    finally:
        for contender in started:
            contender.stop()
    return Race(plan, courses, tuned)


def require_same_start(courses: Mapping[str, Course]) -> None:
    """Raises TrainingError where the first losses differ: then the contenders don't train the same thing."""
    first = {name: course.values[0] for name, course in courses.items() if name != "products"}
    if any(abs(loss - first["ours"]) > _SAME_LOSS * first["ours"] for loss in first.values()):
        said = ", ".join(f"{name} {loss:.4f}" for name, loss in first.items())
        raise TrainingError(f"the first losses differ, so the contenders don't train the same thing: {said}")


def validation_loss(plan: Plan, peft_model: Any, folder: Path) -> float:
    lora.start_from(peft_model, folder)
    model = peft_model.get_base_model()
    return finetune.evaluate(model, peft_model, plan.validation, plan.training.batch_size, CPU)[0]


def _progress(step: int, steps: int, courses: Mapping[str, Course], running: Mapping[str, Contender]) -> str:
    parts = []
    for name in running:
        seconds, value = courses[name].seconds[-1], courses[name].values[-1]
        parts.append(f"{value / 1e9:.0f} GFLOP/s" if name == "products" else f"{name} {seconds:.1f} s, {value:.3f}")
    return f"step {step}/{steps} (seconds, loss): " + " · ".join(parts)


def summary(races: list[Race], peft_model: Any, *, seed: int, base: str) -> dict[str, Any]:
    """Medians over steps. A ratio is the median of the steps' ratios: its two sides ran right after each other."""
    plan = races[0].plan
    size = plan.training.batch_size
    counted = slice(1 if len(plan.batches) > 1 else 0, None)
    least = {shared: [_least_seconds(one, peft_model, shared)[counted] for one in races] for shared in (True, False)}
    seconds = {name: [one.courses[key].seconds[counted] for one in races if (key := _key(one, name))] for name in NAMES}

    def ratio(numerator: list[list[float]], denominator: list[list[float]]) -> float | None:
        pairs = zip(_flat(numerator), _flat(denominator), strict=True) if numerator and denominator else ()
        found = [above / below for above, below in pairs]
        return statistics.median(found) if found else None

    result: dict[str, Any] = {name: _figures(name, races, seconds[name], size) for name in NAMES}
    result["limit"] = {"samples_per_second": size / statistics.median(_flat(least[True])), "final_loss": None}
    result["limit"]["without_shared_prefix"] = size / statistics.median(_flat(least[False]))
    result["limit"]["gflops"] = statistics.median(v for one in races for v in one.courses["products"].values) / 1e9
    result["share_of_limit"] = ratio(least[True], seconds["ours"])
    result["share_of_limit_without_shared_prefix"] = ratio(least[False], seconds["ours"])
    result["ratios"] = {f"speed_to_{peer}": ratio(seconds[peer], seconds["ours"]) for peer in NAMES[1:]}
    for loss in ("final_loss", "validation_loss"):
        result["ratios"] |= {f"{loss}_to_{peer}": _quotient(result, loss, peer) for peer in NAMES[1:]}
    examples = [example for one in races for batch in one.plan.batches for example in batch]
    result["setup"] = {
        "base_model": base, "rank": plan.config.rank, "alpha": plan.config.alpha,
        "last_layers": plan.config.last_layers, "batch_size": size, "steps": len(plan.batches),
        "repeat": len(races), "seeds": [one.plan.seed for one in races], "lora_seed": seed,
        "learning_rate": plan.training.learning_rate, "validation_rows": len(plan.validation), "precision": "fp32",
        "tokens_per_sample": statistics.mean(map(len, examples)),
        "learnt_tokens_per_sample": statistics.mean(sum(example.learnt) for example in examples),
    }  # fmt: skip
    result["machine"] = {
        "processor": platform.machine(), "cores": len(os.sched_getaffinity(0)),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }  # fmt: skip
    packages = ("torch", "transformers", "peft", *(["trl"] if has_trl() else []))
    result["versions"] = {"python": platform.python_version()} | {name: version(name) for name in packages}
    return result


NAMES = ("ours", "trl_default", "trl_tuned")


def _key(one: Race, name: str) -> str | None:
    """The course that stands for `name` in a race, if any does."""
    key = f"trl {one.tuned}" if name == "trl_tuned" else name.replace("_", " ")
    return key if key in one.courses else None


def _figures(name: str, races: list[Race], seconds: list[list[float]], size: int) -> dict[str, Any] | None:
    courses = [one.courses[key] for one in races if (key := _key(one, name))]
    if not courses:
        return None
    last = [course.values[-max(1, len(course.values) // 4) :] for course in courses]
    return {
        "samples_per_second": size / statistics.median(_flat(seconds)),
        "final_loss": statistics.mean(_flat(last)),
        "validation_loss": statistics.mean(c.validation_loss for c in courses if c.validation_loss is not None),
        "losses": [course.values for course in courses],
        "seconds": [course.seconds for course in courses],
    } | ({"settings": [one.tuned for one in races]} if name == "trl_tuned" else {})


def _least_seconds(one: Race, peft_model: Any, shared_once: bool) -> list[float]:
    """What each step's products would take at the rate of the median turn."""
    rate = statistics.median(one.courses["products"].values)
    return [limit.batch_flops(peft_model, batch, shared_once=shared_once) / rate for batch in one.plan.batches]


def _quotient(result: Mapping[str, Any], figure: str, peer: str) -> float | None:
    return result["ours"][figure] / result[peer][figure] if result[peer] else None


def _flat(nested: list[list[float]]) -> list[float]:
    return [value for values in nested for value in values]
