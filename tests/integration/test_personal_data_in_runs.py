"""A fine-tune of data with personal data in it: what is left of that, anywhere, when it is done."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from rich.console import Console

from neuroweaver.jobs import JobState
from pipelines.console import TerminalReporter
from pipelines.train import train
from tests.integration.test_train import TRAINING, make_place

# Each is in its message as a customer would write it, and nowhere else on the machine.
CANARIES = {
    "Vantreight": "My name is Quillon Vantreight.",
    "quillon.canary": "Write to quillon.canary@example.com.",
    "555-0187": "Call me at 415-555-0187 after five.",
    "219-09-9999": "My SSN is 219-09-9999.",
    "4111 1111 1111 1111": "Charge 4111 1111 1111 1111 for the deposit.",
    "8817 Marrowgate": "I live at 8817 Marrowgate Avenue, Springfield, IL 62704.",
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),
]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def with_canaries(leads: Path) -> int:
    """Writes each of them into four messages, so that some are held out; gives how many messages have one."""
    with leads.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    said = [said for said in CANARIES.values() for _ in range(4)]
    for row, more in zip(rows, said, strict=False):
        row["customer_message"] += f" {more}"
    with leads.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return len(said)


def contents(path: Path) -> str:
    """What is in a file, its text unpacked where it is packed."""
    if path.suffix == ".parquet":
        return pd.read_parquet(path).to_csv()
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix in (".gz", ".nwb") else data).decode("utf-8", "replace")


@pytest.mark.security(25)
def test_no_run_model_dataset_log_or_store_holds_what_a_customer_is_known_by(tmp_path: Path, tiny_base: Path) -> None:
    place = make_place(tmp_path, tiny_base)
    written = with_canaries(place.leads)
    assert all(canary in contents(place.leads) for canary in CANARIES)
    log = io.StringIO()

    short = TRAINING | {"max_steps": 4, "eval_steps": 2, "checkpoint_steps": 2}
    outcome = train(
        place.config(training=short), place.settings, TerminalReporter(Console(file=log, soft_wrap=True)), local=True
    )

    assert place.jobs.get(outcome.job_id).state is JobState.SUCCEEDED
    home = place.settings.home
    files = [path for path in home.rglob("*") if path.is_file()]
    kinds = {path.relative_to(home).parts[0] for path in files}
    assert {"datasets", "jobs", "mlflow", "store.db"} <= kinds, "all places are looked at"
    rows = pd.concat(pd.read_parquet(path) for path in home.glob("datasets/*/rows.parquet"))
    placeholders = rows.to_csv().count("[NAME]") + rows.to_csv().count("[EMAIL]") + rows.to_csv().count("[PHONE]")
    assert placeholders >= written / 2, "the messages were learnt from, without what they said"
    found = {(canary, str(path.relative_to(home))) for path in files for canary in CANARIES if canary in contents(path)}
    assert found == set()
    assert not [canary for canary in CANARIES if canary in log.getvalue()]
