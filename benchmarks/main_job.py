"""How fast the main job answers on this machine, beside what its matrix multiplications allow.

    make bench

Prints a table and writes it to benchmarks/results/main-job.{json,md}. Every figure is taken in the one run, so ratios
hold where absolute times wander.
"""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path

import torch

from benchmarks.training import gemm_flops
from neuroweaver import base_model, memory, prompts, settings
from neuroweaver.generation import Generator, Prompt
from neuroweaver.tasks import LEAD_QUALIFICATION
from pipelines.config import load_config
from pipelines.validate import validate_file

RESULTS = Path(__file__).parent / "results"
CONFIG = Path("configs/finetune/sales.yaml")
LEADS = Path("datasets/sales/lead_qualification.csv")
ANSWERS = 48


def main() -> None:
    memory.keep_freed()
    current = settings.load()
    config = load_config(CONFIG)
    model, tokenizer = base_model.load(base_model.fetch(config.base_model, current.home))
    model.requires_grad_(False)
    rows = validate_file(LEADS, model_type="automotive-sales", data_format="csv").rows
    flops = gemm_flops()

    generator = Generator(model, tokenizer)
    asked = [Prompt(prompts.encode(tokenizer, prompts.user_turn(LEAD_QUALIFICATION, r.values)), LEAD_QUALIFICATION)
             for r in rows[:ANSWERS]]  # fmt: skip
    start = time.perf_counter()
    answers = generator.generate(asked)
    answering = time.perf_counter() - start

    result = {
        "cores": len(os.sched_getaffinity(0)),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "gemm_gflops": round(flops / 1e9, 1),
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
