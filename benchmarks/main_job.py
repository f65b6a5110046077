"""How fast the main job's two halves are on this machine, beside what its matrix multiplications allow.

    make bench

Prints a table and writes it to benchmarks/results/main-job.{json,md}. Every figure is taken in the one run, so ratios
hold where absolute times wander.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from neuroweaver import base_model, memory, prompts, settings
from neuroweaver.generation import Generator, Prompt
from neuroweaver.tasks import LEAD_QUALIFICATION
from pipelines.collate import batches, collate
from pipelines.config import load_config
from pipelines.encoding import Example, encode
from pipelines.finetune import add_lora, loss_sum
from pipelines.validate import validate_file

RESULTS = Path(__file__).parent / "results"
CONFIG = Path("configs/finetune/sales.yaml")
LEADS = Path("datasets/sales/lead_qualification.csv")
WARM_UP, STEPS, ANSWERS, SEED = 2, 12, 48, 7


def gemm_flops(rows: int = 1024) -> float:
    """Floating-point operations per second of fp32 products as the model's MLP has them (576 x 1536)."""
    a, b = torch.randn(rows, 576), torch.randn(1536, 576)
    for _ in range(10):
        a @ b.T
    times = []
    for _ in range(30):
        start = time.perf_counter()
        for _ in range(10):
            a @ b.T
        times.append((time.perf_counter() - start) / 10)
    return 2 * rows * 576 * 1536 / statistics.median(times)


def step_flops(model: Any, examples: list[Example], last_layers: int) -> float:
    """What forward and backward of one batch can't do without: padding, attention and LoRA not counted.

    The backward pass needs each adapted layer once more (the weights themselves are frozen), the output head for
    completion tokens only.
    """
    layer = sum(p.numel() for p in model.get_decoder().layers[0].parameters() if p.dim() == 2)
    layers, head = model.config.num_hidden_layers, model.get_output_embeddings().weight.numel()
    shared = len(collate(examples, pad=0).prefix_P)
    tokens = shared + sum(len(example) - shared for example in examples)
    learnt = sum(sum(example.learnt) for example in examples)
    return 2.0 * layer * tokens * (layers + last_layers) + 4.0 * head * learnt


def main() -> None:
    memory.keep_freed()
    current = settings.load()
    config = load_config(CONFIG)
    model, tokenizer = base_model.load(base_model.fetch(config.base_model, current.home))
    model.requires_grad_(False)
    rows = validate_file(LEADS, model_type="automotive-sales", data_format="csv").rows
    examples = [encode(tokenizer, LEAD_QUALIFICATION, row.values) for row in rows]
    flops = gemm_flops()

    generator = Generator(model, tokenizer)
    asked = [Prompt(prompts.encode(tokenizer, prompts.user_turn(LEAD_QUALIFICATION, r.values)), LEAD_QUALIFICATION)
             for r in rows[:ANSWERS]]  # fmt: skip
    start = time.perf_counter()
    answers = generator.generate(asked)
    answering = time.perf_counter() - start

    torch.manual_seed(SEED)
    tuned = add_lora(model, config.lora)
    weights = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=config.training.learning_rate)
    taken, least, samples = 0.0, 0.0, 0
    last_layers = config.lora.last_layers or model.config.num_hidden_layers
    for number, group in enumerate(batches(examples, config.training.batch_size, SEED, 0)[: WARM_UP + STEPS]):
        start = time.perf_counter()
        batch = collate(group, tokenizer.eos_token_id)
        (loss_sum(tuned, batch) / batch.learnt_tokens).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if number >= WARM_UP:
            taken += time.perf_counter() - start
            least += step_flops(model, group, last_layers) / flops
            samples += len(group)

    result = {
        "cores": len(os.sched_getaffinity(0)),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "seed": SEED,
        "gemm_gflops": round(flops / 1e9, 1),
        "training": {
            "samples_per_second": round(samples / taken, 2),
            "limit_samples_per_second": round(samples / least, 2),
            "share_of_limit": round(least / taken, 3),
            "batch_size": config.training.batch_size,
        },
        "answering": {
            "rows_per_second": round(len(answers) / answering, 2),
            "chosen_tokens_per_second": round(sum(a.chosen_tokens for a in answers) / answering, 1),
            "forced_tokens_per_second": round(sum(a.forced_tokens for a in answers) / answering, 1),
            "batch_size": len(answers),
        },
    }
    lines = ["# Main job", "", "`make bench` on one machine, one run; no peers are measured yet.", ""]
    lines += ["| what | figure |", "| --- | --- |"]
    for name, value in result.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        lines += [f"| {name} {key.replace('_', ' ')} | {figure} |".replace("  ", " ") for key, figure in inner]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "main-job.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "main-job.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    main()
