"""Rows put aside: the same comes back in the same order, from memory or from a file that has no name."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines import spool
from pipelines.spool import Backlog, Spool

NUMBERS = pa.schema([("line", pa.int64()), ("text", pa.string())], metadata={"task": "a", "part": "0"})
LISTS = pa.schema([("line", pa.int64()), ("absent", pa.list_(pa.string()))], metadata={"task": "b"})


def batch(start: int, rows: int = 50) -> pa.RecordBatch:
    texts = [None if line % 7 == 0 else f"naïve {line} 🚗" for line in range(start, start + rows)]
    return pa.record_batch([pa.array(range(start, start + rows), pa.int64()), pa.array(texts)], schema=NUMBERS)


def lists(start: int) -> pa.RecordBatch:
    names = [None, [], ["make", None]]
    return pa.record_batch([pa.array(range(start, start + 3)), pa.array(names, pa.list_(pa.string()))], schema=LISTS)


def filled(batches: Iterable[pa.RecordBatch]) -> Spool:
    made = Spool()
    for each in batches:
        made.append(each)
    return made


def assert_gives(found: Spool, wanted: list[pa.RecordBatch]) -> None:
    given = list(found)
    assert len(given) == len(wanted)
    assert all(one.equals(other, check_metadata=True) for one, other in zip(given, wanted, strict=True))


@pytest.fixture(params=[2**26, 2000, 0], ids=["in memory", "in both", "in a file"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room in memory for all, some or none."""
    monkeypatch.setattr(spool, "_IN_MEMORY", request.param)
    monkeypatch.setattr(spool, "_OBJECTS_IN_MEMORY", request.param // 1000)


@pytest.mark.usefixtures("kept")
def test_spool_gives_batches_back_in_order_with_their_schemas_and_metadata() -> None:
    batches = [batch(0), lists(50), batch(53, rows=0), batch(53), lists(103), batch(106).slice(10, 5)]

    assert_gives(filled(batches), batches)


@pytest.mark.usefixtures("kept")
def test_spool_is_read_as_often_as_asked_also_by_two_at_a_time() -> None:
    batches = [batch(start) for start in range(0, 500, 50)]
    found = filled(batches)
    first, second = iter(found), iter(found)

    assert next(first).equals(batches[0])
    assert next(first).equals(batches[1])
    assert next(second).equals(batches[0])
    assert next(first).equals(batches[2])
    assert next(second).equals(batches[1])
    for _ in range(2):
        assert_gives(found, batches)


@pytest.mark.usefixtures("kept")
def test_spool_takes_more_after_it_was_read_in_part() -> None:
    found = filled([batch(0), batch(50)])
    list(found)
    next(iter(found))
    found.append(lists(100))
    found.append(batch(103))

    assert_gives(found, [batch(0), batch(50), lists(100), batch(103)])


@pytest.mark.usefixtures("kept")
def test_spool_of_nothing_gives_nothing() -> None:
    assert list(Spool()) == []
    assert list(Backlog()) == []
    assert len(Backlog()) == 0


def test_spool_file_has_no_name_and_is_gone_with_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(spool, "_IN_MEMORY", 0)
    monkeypatch.setattr(spool, "_OBJECTS_IN_MEMORY", 0)
    rows, objects = filled([batch(0)]), Backlog()
    objects.append("row")
    files = [rows._file, objects._file]

    assert all(file is not None and not file.closed for file in files)
    assert list(tmp_path.iterdir()) == []
    del rows, objects
    gc.collect()
    assert all(file is not None and file.closed for file in files)


def test_spool_writes_no_file_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise AssertionError("a file was made")

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    backlog = Backlog()
    backlog.append("row")

    assert_gives(filled([batch(0)]), [batch(0)])
    assert list(backlog) == ["row"]


@pytest.mark.usefixtures("kept")
def test_backlog_gives_any_objects_back_in_order_as_often_as_asked() -> None:
    items = [{"line": line, "values": ["ü", None, line / 3]} for line in range(25)]
    found = Backlog()
    for item in items:
        found.append(item)
    one, other = iter(found), iter(found)

    assert [next(one), next(one), next(other), next(one), next(other)] == [items[i] for i in (0, 1, 0, 2, 1)]
    assert list(found) == list(found) == items
    next(iter(found))
    found.append("last")
    assert list(found) == [*items, "last"]
    assert len(found) == 26
