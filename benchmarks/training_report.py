"""The training benchmark's figures as a table, and as files beside the code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_ROWS = {
    "ours": "NeuroWeaver",
    "trl_default": "TRL, defaults",
    "trl_tuned": "TRL, tuned",
    "limit": "limit of the products",
}


def table(result: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        "| | samples/s | ours is faster by | training loss at the end | validation loss |",
        "| --- | --- | --- | --- | --- |",
    ]
    for key, title in _ROWS.items():
        figures = result[key]
        if figures is None:
            lines.append(f"| {title} | not measured | | | |")
            continue
        shown = f"{title} ({', '.join(figures['settings'])})" if "settings" in figures else title
        faster = result["ratios"].get(f"speed_to_{key}")
        losses = [
            f"{figures[name]:.4f}" if figures.get(name) is not None else ""
            for name in ("final_loss", "validation_loss")
        ]
        speed = f"{figures['samples_per_second']:.2f}"
        lines.append(f"| {shown} | {speed} | {f'{faster:.2f}' if faster else ''} | {losses[0]} | {losses[1]} |")
    whole = result["share_of_limit_without_shared_prefix"]
    lines += [
        "",
        f"Share of the limit: {result['share_of_limit']:.0%} with the shared prefix counted once a batch, "
        f"{whole:.0%} with every row counted whole. Products: {result['limit']['gflops']:.0f} GFLOP/s.",
    ]
    for group in ("setup", "machine", "versions"):
        lines.append(
            f"{group.capitalize()}: " + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in result[group].items())
        )
    return lines


def save(result: Mapping[str, Any]) -> None:
    """Write benchmarks/results/training.{json,md}."""
    heading = ["# Training", "", "`neuroweaver bench training --save` on one machine, one run.", ""]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "training.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "training.md").write_text("\n".join([*heading, *table(result)]) + "\n", encoding="utf-8")
