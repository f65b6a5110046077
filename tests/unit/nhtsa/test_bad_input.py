"""Lines and files that are not as they should be, and calls that are not."""

from __future__ import annotations

import random
import string
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuroweaver.errors import InputError, UsageError
from pipelines import nhtsa
from pipelines.nhtsa import import_nhtsa
from pipelines.nhtsa_case import sentence_case
from pipelines.nhtsa_text import complaint_text, recall_text
from tests.unit.nhtsa.lines import HEADS, complaint, recall, run, said

# Bad input


def test_single_bad_lines_are_skipped_and_named(tmp_path: Path) -> None:
    good = [complaint(str(number), "ENGINE", f"IT STALLS {number} TIMES.") for number in range(1, 8)]
    tabbed = complaint("8", "ENGINE", "A TAB\tIN THE\tTEXT.")  # 51 fields, but moved
    lines = [
        *good,
        "",
        complaint("8", "ENGINE", "TOO SHORT.", width=30),
        tabbed,
        complaint("x", "ENGINE", "NO NUMBER."),
        complaint("9", "ENGINE", "A" * 33_000),
    ]

    imported, _ = run(tmp_path, lines)

    assert imported.skipped == {"malformed": 4}
    assert imported.first_problems == (
        (9, "the line has 30 fields, 48, 49 or 51 are needed"),
        (10, "field 46 holds no type of product (V, T, E or C)"),
        (11, "field 2 holds no number of a report or campaign"),
        (12, "the text has 33,000 bytes, 32,000 are allowed"),
    )


def test_only_the_first_problems_are_listed(tmp_path: Path) -> None:
    good = [complaint(str(number), "ENGINE", f"IT STALLS {number} TIMES.") for number in range(100)]

    imported, _ = run(tmp_path, [*good, *["broken"] * 50])

    assert imported.skipped == {"malformed": 50}
    assert [line for line, _ in imported.first_problems] == list(range(101, 121))


def test_a_line_of_any_length_takes_no_more_memory_than_the_longest_allowed(tmp_path: Path) -> None:
    lines = [
        complaint("1", "ENGINE", "IT STALLS OFTEN."),
        b"x" * 3_500_000,
        complaint("2", "SEATS", "A SEAT IS LOOSE."),
    ]

    imported, rows = run(tmp_path, lines)

    assert imported.first_problems == ((2, "the line has over 1,000,000 bytes"),)
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\r\n\r\n \n", "is empty"),
        (b"PK\x03\x04" + bytes(100), "is a ZIP archive: unpack it"),
        (bytes(range(256)) * 20, "is binary data"),
        (complaint("1", "ENGINE", "IT STALLS.").encode("utf-16"), "is binary data"),
        (b"a\tb\tc\n" * 3, r"line 1: is this FLAT_CMPL\? It has 3 fields, 48, 49 or 51 are needed"),
        (b'{"system": "ENGINE"}\n', r"It has 1 field, 48, 49 or 51 are needed"),
        (b"x" * 2_000_000, r"line 1: the line has over 1,000,000 bytes: is this FLAT_CMPL\?"),
    ],
    ids=["empty", "blank", "zip", "binary", "utf-16", "fields", "json", "long"],
)
def test_a_file_that_is_none_is_refused_and_nothing_is_written(tmp_path: Path, content: bytes, message: str) -> None:
    source, output = tmp_path / "file.txt", tmp_path / "rows.jsonl"
    source.write_bytes(content)

    with pytest.raises(InputError, match=message):
        import_nhtsa("complaints", source, output)

    assert list(tmp_path.iterdir()) == [source]


def test_the_other_kind_of_file_is_told(tmp_path: Path) -> None:
    source = tmp_path / "file.txt"
    source.write_text(recall("20V001000", "AIR BAGS", "IT MAY RUPTURE."), encoding="utf-8")
    with pytest.raises(InputError, match=r"these are recalls \(FLAT_RCL, 29 fields\), not complaints"):
        import_nhtsa("complaints", source, tmp_path / "rows.jsonl")

    source.write_text("\n" + complaint("1", "ENGINE", "IT STALLS."), encoding="utf-8")
    with pytest.raises(InputError, match=r"file.txt line 2: these are complaints .* import them as complaints"):
        import_nhtsa("recalls", source, tmp_path / "rows.jsonl")


def test_half_of_the_first_lines_may_be_broken_and_no_more(tmp_path: Path) -> None:
    good = [complaint(str(number), "ENGINE", f"IT STALLS {number} TIMES.") for number in range(3)]
    imported, _ = run(tmp_path, [*["broken"] * 3, *good])
    assert imported.skipped == {"malformed": 3}

    with pytest.raises(InputError, match="line 1: is this FLAT_CMPL"):
        run(tmp_path, [*["broken"] * 4, *good])


def test_a_wrong_call_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "file.txt"
    source.write_text(complaint("1", "ENGINE", "IT STALLS."), encoding="utf-8")

    with pytest.raises(UsageError, match="unknown kind 'bulletins': one of complaints, recalls"):
        import_nhtsa("bulletins", source, tmp_path / "rows.jsonl")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="limit must be at least 1, got 0"):
        import_nhtsa("complaints", source, tmp_path / "rows.jsonl", limit=0)
    with pytest.raises(UsageError, match="the output is a folder"):
        import_nhtsa("complaints", source, tmp_path)
    with pytest.raises(UsageError, match="the output is the file to import"):
        import_nhtsa("complaints", source, source)
    with pytest.raises(InputError, match="no such file"):
        import_nhtsa("complaints", tmp_path / "none.txt", tmp_path / "rows.jsonl")
    with pytest.raises(InputError, match="not a file"):
        import_nhtsa("complaints", tmp_path, tmp_path / "rows.jsonl")


# Files


def test_an_import_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = tmp_path / "file.txt", tmp_path / "rows.jsonl"
    source.write_text(complaint("1", "ENGINE", "IT STALLS OFTEN."), encoding="utf-8")
    output.write_text("old", encoding="utf-8")
    monkeypatch.setattr(nhtsa, "_ADVANCE_LINES", 1)

    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_nhtsa("complaints", source, output, advance=interrupt)

    assert output.read_text(encoding="utf-8") == "old"
    assert sorted(tmp_path.iterdir()) == [source, output]


def test_the_folder_of_the_output_is_made(tmp_path: Path) -> None:
    source, output = tmp_path / "file.txt", tmp_path / "new" / "rows.jsonl"
    source.write_text(complaint("1", "ENGINE", "IT STALLS OFTEN."), encoding="utf-8")

    import_nhtsa("complaints", source, output)

    assert output.exists()


def test_progress_is_told_in_bytes_up_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nhtsa, "_ADVANCE_LINES", 2)
    told: list[int] = []

    run(
        tmp_path,
        [complaint(str(number), "ENGINE", f"IT STALLS {number} TIMES.") for number in range(7)],
        advance=told.append,
    )

    size = (tmp_path / "source.txt").stat().st_size
    assert len(told) == 4
    assert sum(told) == size


def test_a_limit_ends_the_import_at_that_many_rows(tmp_path: Path) -> None:
    lines = [complaint(str(number // 3), "ENGINE", f"IT STALLS {number} TIMES.") for number in range(100)]

    imported, rows = run(tmp_path, lines, limit=10)

    assert (imported.read, imported.written, len(rows)) == (10, 10, 10)


# Fuzz


def test_any_lines_add_up_and_give_rows_that_the_validator_takes(
    tmp_path: Path, validated: Callable[[Path], dict[str, Any]]
) -> None:
    chance = random.Random(11)
    components = [*HEADS, "NONE", "CHILD SEAT", ""]
    texts = [f"{what} {how}{end}" for what in ("IT STALLS", "Belt frays", "LAMP, LEFT") for how in ("OFTEN", "AT 9 MPH", "x")
             for end in (".", "  TT", " NHTSA CAMPAIGN NUMBER: 14V153000 (SEATS).", "\x00\xff", " *AK", '"')]  # fmt: skip
    for attempt in range(30):
        lines: list[str | bytes] = [complaint("1", "ENGINE", f"THE {word}.") for word in ("A", "B", "C")]
        for _ in range(60):
            line: bytes = complaint(
                str(chance.randint(1, 12)), chance.choice(components), chance.choice(texts), width=chance.choice((48, 49, 51)),
                year=chance.choice(("2014", "9999", "", "20x4")), product=chance.choice("VVVVT"),
                happened=chance.choice(("20150304", "19000000", "")), mileage=chance.choice(("0", "12", "99999999")),
            ).encode("latin-1")  # fmt: skip
            if chance.random() < 0.1:
                cut = chance.randrange(len(line))
                line = line[:cut] + bytes(chance.choices(range(256), k=3)).replace(b"\n", b"") + line[cut:]
            lines.append(line)
        exclude = [str(chance.randint(1, 30))]
        limit = chance.choice((None, None, 5))

        imported, rows = run(tmp_path, lines, exclude=exclude, limit=limit, end=chance.choice((b"\n", b"\r\n")))

        folded = ["".join(filter(str.isalnum, said(row).lower())) for row in rows]
        assert len(set(folded)) == len(folded), attempt
        assert all(row["customer_id"] not in exclude for row in rows)
        assert not any("14V153000" in said(row) or "\x00" in said(row) for row in rows)
        assert limit or imported.read == 63
        if rows and attempt % 10 == 0:
            report = validated(tmp_path / "rows.jsonl")
            assert (report["valid"], report["rows"]["valid"]) == (True, len(rows)), report["errors"]


def test_texts_of_any_kind_are_cleaned_in_no_time() -> None:
    chance = random.Random(5)
    words = [
        "THE", "CONTACT", "OWNS", "A", "2014", "RECEIVED", "RECALL", "PART", "94V-129", "14V153000", "(SEATS", ")", "(", "*AK",
        "UPDATED", "PLEASE", "DESCRIBE", ".", ",", '"', "FMVSS", "NO.", "108", ":", "ENGINE", "MILEAGE", "WAS", "TT", "  ",
    ]  # fmt: skip
    texts = [" ".join(chance.choices(words, k=200)) for _ in range(200)]
    texts += ["".join(chance.choices(string.printable, k=300)) for _ in range(200)]
    texts += [
        word * (32_000 // len(word))
        for word in ("(", "A ", "*AK ", "14V153000 AND ", '"', ". ", "recall ", "(SEATS, ", "received part ")
    ]
    start = time.perf_counter()

    for text in texts:
        for clean in (complaint_text, recall_text):
            assert clean(text) == clean(text).strip()
            sentence_case(clean(text), {})

    assert time.perf_counter() - start < 20
