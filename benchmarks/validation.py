"""How fast a large file is validated, beside plain Pandera on the same one.

    neuroweaver bench validation
    neuroweaver bench validation --rows 200000 --seed 8 --json

The file is generated: leads as a dealership exports them, one in a hundred with a fault, one in thirty with a phone
number or an e-mail address, some that say the same twice, some with a line end inside. Each contender is a process of
its own, timed from its start to its end, its peak memory as the operating system accounts for it.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from neuroweaver import vocabulary as words
from neuroweaver.errors import NeuroWeaverError

RESULTS = Path(__file__).parent / "results"
COLUMNS = (
    "example_id", "customer_id", "occurred_at", "customer_message", "vehicle_type", "condition", "make", "model",
    "year", "budget_min", "budget_max", "budget_kind", "timeline", "financing", "trade_in",
)  # fmt: skip
CARS = (
    ("Toyota", "Tacoma", "truck"), ("Toyota", "RAV4", "suv"), ("Honda", "Civic", "sedan"), ("Honda", "CR-V", "suv"),
    ("Ford", "F-150", "truck"), ("Ford", "Escape", "suv"), ("Chevrolet", "Malibu", "sedan"), ("Kia", "Sorento", "suv"),
    ("Hyundai", "Elantra", "sedan"), ("Subaru", "Outback", "wagon"), ("Mazda", "MX-5", "convertible"),
    ("Chrysler", "Pacifica", "van"), ("Volkswagen", "Golf", "hatchback"), ("Nissan", "Altima", "sedan"),
)  # fmt: skip
OPENINGS = (
    "Hi, I saw the",
    "Good morning. Is the",
    "looking for a",
    "Do you still have the",
    "My wife wants a",
    "Need a",
)
REASONS = (
    "for my commute", "for the kids and two dogs", "to tow a small boat", "because ours was totaled last week",
    "for my son who starts college", "as a second car", "with heated seats if possible", "for a plumbing business",
)  # fmt: skip
TIMES = {
    "immediate": "today if you can", "within_7d": "by Friday", "within_30d": "before the end of the month",
    "within_90d": "in about two months", "over_90d": "but not before next year", "unknown": "no rush",
}  # fmt: skip


def lead(order: random.Random, number: int) -> list[Any]:
    """One row, the number of which makes its words its own."""
    make, model, body = order.choice(CARS)
    year = order.randrange(2012, 2027)
    most = order.randrange(8, 60) * 1000
    timeline = order.choice(words.TIMELINES)
    condition = order.choice(words.CONDITIONS)
    financing = order.choice(words.FINANCING)
    said = f"{order.choice(OPENINGS)} {year} {make} {model} {order.choice(REASONS)}, {TIMES[timeline]}."
    said += f" We can spend up to ${most:,} and have {order.randrange(20, 180)},{number % 1000:03d} miles on ours."
    if order.random() < 0.03:
        said += order.choice((f" Call 734-555-{order.randrange(100, 200):04d}.", f" Mail: buyer{number}@example.com"))
    if order.random() < 0.02:
        said += "\nThanks, sent from my phone"
    if order.random() < 0.01:
        body = body.title()  # not one of the labels
    day = f"2026-{order.randrange(1, 13):02d}-{order.randrange(1, 29):02d}"
    return [
        f"lead-{number}", f"C-{number // 2}", day, said, body, condition, make, model, year, "",
        most, "total", timeline, financing, order.choice(words.TRADE_IN),
    ]  # fmt: skip


def rows(count: int, seed: int) -> Iterator[list[Any]]:
    order = random.Random(seed)
    row = lead(order, 0)
    for number in range(count):
        if order.random() >= 0.005:  # else the last row once more
            row = lead(order, number)
        yield row


def write(path: Path, count: int, seed: int) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows(count, seed))


def measured(command: list[str]) -> tuple[float, float, str]:
    """Seconds, peak MiB and output of a process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise NeuroWeaverError(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024, output


def run(count: int, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="neuroweaver-bench-") as folder:
        path = Path(folder) / "leads.csv"
        write(path, count, seed)
        call = ["validate", str(path), "--model-type", "automotive-sales", "--task", "lead-qualification", "--json"]
        ours, peak, output = measured([sys.executable, "-m", "pipelines.cli", *call])
        report = json.loads(output)
        pandera, pandera_peak, _ = measured([sys.executable, __file__, str(path)])
        size = path.stat().st_size
    if report["rows"]["total"] != count:
        raise NeuroWeaverError(f"{report['rows']['total']} rows were read, {count} were written")
    return {
        "rows": count,
        "rows_per_second": round(count / ours),
        "peak_mib": round(peak),
        "pandera_rows_per_second": round(count / pandera),
        "pandera_peak_mib": round(pandera_peak),
        "file_mib": round(size / 2**20),
        "seconds": round(ours, 2),
        "by_rule": report["byRule"],
        "pii": report["pii"],
        "tokens": report["tokens"],
        "seed": seed,
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def save(result: dict[str, Any]) -> None:
    """The figures of one run beside the code, for whoever wants to compare."""
    lines = ["# Validation", "", "`neuroweaver bench validation --save` on one machine, one run.", ""]
    lines += ["| what | figure |", "| --- | --- |"]
    for name, value in result.items():
        figure = ", ".join(f"{key} {count}" for key, count in value.items()) if isinstance(value, dict) else value
        lines.append(f"| {name.replace('_', ' ')} | {figure} |")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "validation.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "validation.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def table(result: dict[str, Any]) -> Table:
    shown = Table(
        title=f"{result['rows']:,} rows, {result['file_mib']} MiB, {result['cores']} cores", title_justify="left"
    )
    for name in ("", "rows/s", "peak MiB", "checks"):
        shown.add_column(name, justify="left" if name in ("", "checks") else "right")
    ours = "types, labels, ranges, duplicates, conflicts, personal data, tokens, lines"
    shown.add_row("neuroweaver validate", f"{result['rows_per_second']:,}", f"{result['peak_mib']:,}", ours)
    theirs = "types, labels, ranges"
    shown.add_row("Pandera alone", f"{result['pandera_rows_per_second']:,}", f"{result['pandera_peak_mib']:,}", theirs)
    return shown


def plain_pandera(path: str) -> None:
    """What one would write without us: the file into pandas, labels and ranges into a schema."""
    import pandas as pd
    import pandera.pandas as pa

    labels = {
        "vehicle_type": words.VEHICLE_TYPES, "condition": words.CONDITIONS, "budget_kind": words.BUDGET_KINDS,
        "timeline": words.TIMELINES, "financing": words.FINANCING, "trade_in": words.TRADE_IN,
    }  # fmt: skip
    schema = pa.DataFrameSchema(
        {
            "customer_message": pa.Column(str, pa.Check.str_length(1, 32_000)),
            **{name: pa.Column(str, pa.Check.isin(values)) for name, values in labels.items()},
            "year": pa.Column(float, pa.Check.in_range(1900, 2028), nullable=True),
            "budget_min": pa.Column(float, pa.Check.in_range(0, 10_000_000), nullable=True),
            "budget_max": pa.Column(float, pa.Check.in_range(0, 10_000_000), nullable=True),
        },
        coerce=True,
    )
    try:
        schema.validate(pd.read_csv(path, keep_default_na=False, na_values={"budget_min": [""]}), lazy=True)
    except pa.errors.SchemaErrors as errors:
        print(len(errors.failure_cases))  # noqa: T201


if __name__ == "__main__":
    plain_pandera(sys.argv[1])
