"""Uploads as `automotive-crm` (ADF, Salesforce), and what a validation report has to say of each.

The expectations lie in `tests/corpus/crm/manifest.json` and were written from the contract pages alone
(`contracts.md` section 2, `data-rules.md`, `labels.md`, the notes on ADF): a test that fails here is a report that
breaks a promise, or a promise that was read wrongly. A case that the pages leave open says so under `open`, and
expects only what is certain; `expectAny` lists several lawful answers.

An expected finding is `[line, record, column, rule]`; `"*"` stands for anything, `"a|b"` for either. Keys that an
expectation leaves out are not compared; `mayWarn` are warnings that may be there or not. In `values`, a list is a
choice (`null` in it: not stated), and blanks in `customer_message` are folded before it is compared. Files that
would be large are made here, as `generate` says.
"""

from __future__ import annotations

import json
import re
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from neuroweaver.errors import UsageError
from pipelines.ingest.sniff import WrongKindError
from pipelines.validate import validate_file

CORPUS = Path(__file__).parents[1] / "corpus" / "crm"
MANIFEST: dict[str, Any] = json.loads((CORPUS / "manifest.json").read_text(encoding="utf-8"))
CASES: list[dict[str, Any]] = MANIFEST["cases"]
SECRETS: list[str] = MANIFEST["secrets"]
LISTED = 1000  # `errors` and `warnings` hold the first 1,000, `byRule` counts all
LARGEST_COMMITTED = 200_000  # bytes
RULES = frozenset(
    [
        "missing_column",
        "missing_value",
        "type",
        "enum",
        "range",
        "length",
        "pattern",
        "date_range",
        "duplicate",
        "conflict",
        "encoding",
        "malformed",
        "vin_checksum",
        "empty",
        "pii",
        "over_length",
        "unknown_column",
    ]
)
ENUMERATIONS = {
    "vehicle_type": ["sedan", "coupe", "hatchback", "wagon", "suv", "truck", "van", "convertible", "unknown"],
    "condition": ["new", "used", "unknown"],
    "budget_kind": ["total", "monthly", "downpayment", "unknown"],
    "timeline": ["immediate", "within_7d", "within_30d", "within_90d", "over_90d", "unknown"],
    "financing": ["cash", "finance", "lease", "outside", "unknown"],
    "trade_in": ["yes", "no", "unknown"],
}
LABELS = {*ENUMERATIONS, "make", "model", "year", "budget_min", "budget_max"}

Found = tuple[int | None, int | None, str | None, str]


# --- files made at test time ------------------------------------------------------------------------------------


def _letters(number: int) -> str:
    """Three letters that differ for each number: digits could be taken for PII."""
    return "".join(chr(ord("a") + number // 26**place % 26) for place in (2, 1, 0))


def prospects(
    count: int,
    *,
    blank: list[int] | None = None,
    bad_year: list[int] | None = None,
    copy_of_first: list[int] | None = None,
    late: str = "",
    fill: str = "lorem ipsum dolor ",
    fill_count: int = 20,
    end: str = "</adf>\n",
    encoding: str = "utf-8",
    line_end: str = "\n",
) -> bytes:
    """Distinct prospects of six lines each, the first on line 3; `late` is said by the last one alone."""
    lines = [f'<?xml version="1.0" encoding="{encoding.upper()[:6] if "16" in encoding else encoding}"?>', "<adf>"]
    for number in range(count):
        first = 0 if number in (copy_of_first or ()) else number
        said = f"Car {_letters(first)} please. {fill * fill_count}{late if number == count - 1 else ''}"
        lines += [
            "<prospect>",
            "<requestdate>2025-03-05T12:00:00Z</requestdate>",
            f"<vehicle><year>{'new' if number in (bad_year or ()) else 2024}</year><make>Honda</make></vehicle>",
            f"<customer><contact><name>Caller {number}</name></contact>",
            f"<comments>{' ' if number in (blank or ()) else said}</comments></customer>",
            "</prospect>",
        ]
    return (line_end.join([*lines, end])).encode(encoding)


def salesforce_records(
    count: int,
    *,
    blank: list[int] | None = None,
    copy_of_first: list[int] | None = None,
    end: str = "\n]}\n",
) -> bytes:
    """One REST answer with distinct Leads, one a line, the first on line 2; a Bulk array where `end` closes one."""
    records = []
    for number in range(count):
        first = 0 if number in (copy_of_first or ()) else number
        said = "" if number in (blank or ()) else f"Car {_letters(first)} please. {'lorem ipsum dolor ' * 10}"
        attributes = {"type": "Lead", "url": f"/services/data/v60.0/sobjects/Lead/00Q5e0000{number:06d}AAA"}
        records.append(json.dumps({"attributes": attributes, "Id": f"00Q5e0000{number:06d}AAA", "Description": said}))
    return (f'{{"totalSize": {count}, "done": true, "records": [\n' + ",\n".join(records) + end).encode()


BLOCK = 1024  # every power of two from here to 1 MiB is a multiple of it, and so is a sensible size of a block


def straddling(*, before: str, construct: str, after: str, encoding: str = "utf-8") -> bytes:
    """1,100 prospects of BLOCK bytes each, and a blank one: `construct` lies across every multiple of BLOCK.

    `@` is filled with letters and `~` with blanks, up to the size; `#` are letters that differ.
    """

    def filled(text: str, size: int, number: int = 0) -> bytes:
        text = text.replace("#", _letters(number))
        sign = "@" if "@" in text else "~"
        head, tail = (part.replace("@", "x").encode(encoding) for part in text.rsplit(sign, 1))
        filler = ("x" if sign == "@" else " ").encode(encoding)
        return head + filler * ((size - len(head) - len(tail)) // len(filler)) + tail

    middle = construct.encode(encoding)
    unit = len("x".encode(encoding))
    cut = len(middle) // unit // 2 * unit
    content = filled("<adf><!--@-->", BLOCK // 2)
    for number in range(1100):
        content += filled(before, BLOCK // 2 - cut, number) + middle
        content += filled(after, BLOCK // 2 - len(middle) + cut, number)
        if content[(number + 1) * BLOCK - cut :][: len(middle)] != middle:
            raise AssertionError(f"nothing lies across byte {(number + 1) * BLOCK}")
    return content + "<prospect><customer><comments> </comments></customer></prospect></adf>".encode(encoding)


GENERATORS: dict[str, Callable[..., bytes]] = {
    "prospects": prospects,
    "salesforce_records": salesforce_records,
    "straddling": straddling,
}


def upload_of(case: dict[str, Any], folder: Path) -> Path:
    if "generate" not in case:
        return CORPUS / case["file"]
    arguments = dict(case["generate"])
    path = folder / f"{case['name']}.upload"
    if "text" in arguments:
        parts = (part if isinstance(part, str) else part[0] * part[1] for part in arguments["text"])
        path.write_bytes("".join(parts).encode())
    else:
        path.write_bytes(GENERATORS[arguments.pop("function")](**arguments))
    return path


# --- comparing an answer with an expectation --------------------------------------------------------------------


def validate(case: dict[str, Any], path: Path) -> Any:
    first, last = case.get("dateRange", [None, None])
    return validate_file(
        path,
        model_type=case["modelType"],
        data_format=case["dataFormat"],
        task=None,
        dealership=None,
        department=case.get("department"),
        date_from=date.fromisoformat(first) if first else None,
        date_to=date.fromisoformat(last) if last else None,
    )


def matches(pattern: list[Any], found: Found) -> bool:
    def one(wanted: Any, got: Any) -> bool:
        return wanted in ("*", got) or (isinstance(wanted, str) and "|" in wanted and got in wanted.split("|"))

    return all(one(wanted, got) for wanted, got in zip(pattern, found, strict=True))


def unlike(name: str, wanted: list[list[Any]], optional: list[list[Any]], got: list[Found]) -> list[str]:
    """What is expected and not there, and what is there and not expected; the most exact patterns choose first."""
    left, missing = Counter(got), []
    for pattern in sorted(wanted, key=lambda pattern: sum("*" in str(part) or "|" in str(part) for part in pattern)):
        hit = next((entry for entry in left if left[entry] and matches(pattern, entry)), None)
        if hit is None:
            missing.append(f"{name}: expected and absent: {pattern}")
        else:
            left[hit] -= 1
    surplus = [entry for entry in left.elements() if not any(matches(pattern, entry) for pattern in optional)]
    return missing + [f"{name}: not expected: {list(entry)}" for entry in surplus]


def folded(value: Any) -> Any:
    return " ".join(value.split()) if isinstance(value, str) else value


def unlike_row(wanted: dict[str, Any], row: Any) -> list[str]:
    name, lines = f"record {wanted['record']}", []
    for column, value in wanted.get("values", {}).items():
        got = row.values.get(column)
        got = folded(got) if column == "customer_message" else got
        choices = [folded(one) for one in value] if isinstance(value, list) else [folded(value)]
        if got not in choices:
            lines.append(f"{name}, {column}: expected {' or '.join(map(repr, choices))}, got {got!r}")
    for column in wanted.get("absent", []):
        if column not in row.absent:
            lines.append(f"{name}, {column}: expected absent, got {row.values.get(column)!r}, absent is {row.absent}")
    message = folded(row.values.get("customer_message") or "")
    lines += [
        f"{name}: {part!r} is not in {message!r}" for part in wanted.get("contains", []) if folded(part) not in message
    ]
    lines += [f"{name}: {part!r} is in {message!r}" for part in wanted.get("lacks", []) if part in message]
    if "occurredAt" in wanted:
        choices = wanted["occurredAt"] if isinstance(wanted["occurredAt"], list) else [wanted["occurredAt"]]
        got = row.occurred_at and str(row.occurred_at)[:10]
        if got not in choices:
            lines.append(f"{name}, occurred_at: expected {choices}, got {got!r}")
    return lines


def differences(expect: dict[str, Any], told: dict[str, Any], rows: list[Any]) -> list[str]:
    lines: list[str] = []
    for key in ("valid", "encoding", "delimiter", "rows"):
        if key in expect and told[key] != expect[key]:
            lines.append(f"{key}: expected {expect[key]!r}, got {told[key]!r}")
    if "pii" in expect and expect["pii"] != {kind: count for kind, count in told["pii"].items() if count}:
        lines.append(f"pii: expected {expect['pii']}, got {told['pii']}")
    lines += [f"pii: {kind} counted" for kind in expect.get("piiLacks", []) if told["pii"].get(kind)]
    for field, counts in expect.get("labels", {}).items():
        got_counts = {value: count for value, count in told["labels"].get(field, {}).items() if count}
        if got_counts != counts:
            lines.append(f"labels.{field}: expected {counts}, got {got_counts}")
    for key in ("errors", "warnings"):
        if key in expect:
            found = [(entry["line"], entry["record"], entry["column"], entry["rule"]) for entry in told[key]]
            lines += unlike(key, expect[key], expect.get("mayWarn", []) if key == "warnings" else [], found)
    by_record = {row.record: row for row in rows}
    for wanted in expect.get("values", []):
        if wanted["record"] in by_record:
            lines += unlike_row(wanted, by_record[wanted["record"]])
        else:
            lines.append(f"record {wanted['record']}: not among the rows")
    return lines


def broken_promises(told: dict[str, Any], rows: list[Any]) -> list[str]:
    """What the pages promise of every report and every row, whatever the file."""
    lines = []
    counts = told["rows"]
    numbers = [counts[name] for name in ("total", "valid", "quarantined", "duplicates")]
    if None in numbers:
        if any(number is not None for number in numbers):
            lines.append(f"rows: some null, some not: {counts}")
        if told["valid"]:
            lines.append("a file that can't be read is valid")
    elif numbers[0] != sum(numbers[1:]):
        lines.append(f"rows: total is not the sum of the others: {counts}")
    elif told["valid"] and (not numbers[1] or numbers[2] * 10 > numbers[0]):
        lines.append(f"valid in spite of {counts}")
    if told["valid"] and len(rows) != counts["valid"]:
        lines.append(f"{len(rows)} rows go on, {counts['valid']} are valid")
    listed = Counter(entry["rule"] for entry in told["errors"] + told["warnings"])
    counted = Counter({rule: count for rule, count in told["byRule"].items() if count})
    is_cut = told["errorsTruncated"] or len(told["warnings"]) >= LISTED
    if (listed - counted) if is_cut else (listed != counted):
        lines.append(f"byRule says {dict(counted)}, the lists hold {dict(listed)}")
    lines += [f"no rule of the contract: {rule}" for rule in listed if rule not in RULES]
    lines += [f"no message: {entry}" for entry in told["errors"] + told["warnings"] if not entry["message"]]
    for row in rows:
        lines += [
            f"record {row.record}: {column} is {row.values[column]!r}"
            for column, allowed in ENUMERATIONS.items()
            if row.values.get(column) is not None and row.values[column] not in allowed
        ]
        lines += [
            f"record {row.record}: {column} is absent and {row.values[column]!r}"
            for column in row.absent
            if row.values.get(column) is not None
        ]
        lines += [f"record {row.record}: {column} is no label" for column in row.absent if column not in LABELS]
        if row.task != "lead-qualification":
            lines.append(f"record {row.record}: task {row.task}")
    return lines


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in CASES])
def test_validation_answers_each_crm_upload_as_the_contract_pages_say(case: dict[str, Any], tmp_path: Path) -> None:
    path = upload_of(case, tmp_path)
    told: dict[str, Any] = {}
    rows: list[Any] = []
    try:
        answer = validate(case, path)
    except WrongKindError as error:
        outcome, spoken = "wrong_kind", str(error)
    except UsageError as error:
        outcome, spoken = "wrong_call", str(error)
    except Exception:
        outcome, spoken = "a crash", "".join(traceback.format_exc(limit=-2))
    else:
        outcome, spoken, rows = "report", answer.report.to_json(), list(answer.rows)
        told = json.loads(spoken)
    problems: list[list[str]] = []
    for expect in case.get("expectAny") or [case["expect"]]:
        if expect["outcome"] != outcome:
            problems.append([f"outcome: expected {expect['outcome']}, got {outcome}: {spoken[-300:]}"])
        else:
            problems.append(differences(expect, told, rows) if outcome == "report" else [])
    broken = [f"shown in the answer: {secret}" for secret in SECRETS + case.get("secrets", []) if secret in spoken]
    spoken.encode()  # no lone surrogates
    if outcome == "report":
        broken += broken_promises(told, rows)
    if broken or all(problems):
        lines = problems[0]
        if len(problems) > 1:
            lines = [line for number, some in enumerate(problems, 1) for line in [f"-- reading {number}:", *some]]
        pytest.fail("\n  ".join([f"{case['name']}: {case['why']}", *broken, *lines]), pytrace=False)


def test_every_file_of_the_crm_corpus_belongs_to_a_case_and_is_small() -> None:
    named = {case["file"] for case in CASES if "file" in case}
    there = {path.name: path.stat().st_size for path in CORPUS.iterdir() if path.name != "manifest.json"}
    assert set(there) == named
    assert {name for name, size in there.items() if size > LARGEST_COMMITTED} == set()


def test_every_crm_case_has_a_name_of_its_own_a_reason_and_something_to_upload() -> None:
    assert [name for name, count in Counter(case["name"] for case in CASES).items() if count > 1] == []
    for case in CASES:
        assert case["why"]
        assert ("file" in case) != ("generate" in case), case["name"]
        assert ("expect" in case) != ("expectAny" in case), case["name"]


def test_people_phones_and_addresses_of_the_crm_corpus_are_invented() -> None:
    for path in CORPUS.iterdir():
        text = path.read_bytes().decode("latin-1").replace("\0", "")
        for domain in re.findall(r"[\w.+-]+@([\w.-]+\.[a-z]{2,})", text):
            assert domain.endswith("example.com"), path.name
        for phone in re.findall(r"\b\d{3}\W{1,2}(\d{3}-\d{4})\b", text):
            assert phone.startswith("555-01"), path.name
