"""Uploads as `csv` and `json`, and what a validation report has to say of each.

The expectations lie in `tests/corpus/csv_json/manifest.json` and were written from the contract pages alone
(`contracts.md` section 2, `data-rules.md`, `labels.md`): a test that fails here is a report that breaks a
promise, or a promise that was read wrongly. A case that the pages leave open says so under `open`, and expects
only what is certain.

An expected finding is `[line, record, column, rule]`; `"*"` stands for anything, `"a|b"` for either, and
`"|b"` for `b` or null; `{"from": finding, "count": n}` for n of them on consecutive lines. Keys that an expectation leaves out are not compared. `expectAny` lists several lawful
reports. Files that would be large are made here, by the function that `generate` names.
"""

from __future__ import annotations

import hashlib
import json
import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from neuroweaver.errors import UsageError
from neuroweaver.report import ValidationReport
from pipelines.ingest.sniff import WrongKindError
from pipelines.validate import validate_file

CORPUS = Path(__file__).parents[1] / "corpus" / "csv_json"
MANIFEST: dict[str, Any] = json.loads((CORPUS / "manifest.json").read_text(encoding="utf-8"))
CASES: list[dict[str, Any]] = MANIFEST["cases"]
SECRETS: list[str] = MANIFEST["secrets"]
LISTED = 1000  # `errors` and `warnings` hold the first 1,000, `byRule` counts all
SHOWN = 30  # differences in a failure
LARGEST_COMMITTED = 200_000  # bytes
RULES = {
    "missing_column", "missing_value", "type", "enum", "range", "length", "pattern", "date_range", "duplicate",
    "conflict", "encoding", "malformed", "vin_checksum", "empty", "pii", "over_length", "unknown_column",
}  # fmt: skip

Found = tuple[int | None, int | None, str | None, str]

# --- files made at test time ------------------------------------------------------------------------------------

BLOCK = 1024  # every power of two from here to 1 MiB is a multiple of it, and so is a sensible chunk size
BLOCKS = 1100  # a little over 1 MiB
FINANCE_HEADER = "question,topic,answer,escalate_to"
LEAD_COLUMNS = (
    "task,customer_message,vehicle_type,condition,make,model,year,budget_min,budget_max,budget_kind,timeline,"
    "financing,trade_in"
)


def _letters(number: int) -> str:
    """Three letters that differ for each number: digits could be taken for PII."""
    return "".join(chr(ord("a") + number // 26**place % 26) for place in (2, 1, 0))


def _finance_row(number: int, topic: str = "apr") -> str:
    return f"What is an APR in case {_letters(number)}?,{topic},It is the yearly cost of a loan.,none"


def _finance_object(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "question": f"What is an APR in case {_letters(number)}?", "topic": "apr",
        "answer": "It is the yearly cost of a loan.", "escalate_to": "none", **changes,
    }  # fmt: skip


def _lines(lines: Iterable[str], end: str = "\n") -> bytes:
    return "".join(line + end for line in lines).encode()


def finance_csv(rows: int, wrong_from: int | None = None, wrong_to: int | None = None) -> bytes:
    """Distinct rows; those with wrong_from <= index < wrong_to have a topic that is no label."""
    wrong = range(wrong_from or 0, wrong_to or 0)
    return _lines([FINANCE_HEADER, *(_finance_row(row, "APR" if row in wrong else "apr") for row in range(rows))])


def finance_csv_with_answer_of(characters: int, sign: str = "x", good_rows: int = 0) -> bytes:
    rows = [f"What is an APR?,apr,{sign * characters},none", *(_finance_row(row) for row in range(good_rows))]
    return _lines([FINANCE_HEADER, *rows])


def finance_json_with_answer_of(characters: int, sign: str = "x", good_rows: int = 0) -> bytes:
    long = {"question": "What is an APR?", "topic": "apr", "answer": sign * characters, "escalate_to": "none"}
    return _lines(json.dumps(row, ensure_ascii=False) for row in [long, *map(_finance_object, range(good_rows))])


def finance_array_with_answer_of(characters: int, good_rows: int) -> bytes:
    lines = finance_json_with_answer_of(characters, good_rows=good_rows).splitlines()
    return b"[\n" + b",\n".join(lines) + b"\n]\n"


def after_blanks(blanks: int, content: str) -> bytes:
    return b"\n" * blanks + content.encode()


def finance_csv_with_unknown_columns(columns: int) -> bytes:
    names = [f"extra_{_letters(column)}" for column in range(columns)]
    return _lines([",".join([FINANCE_HEADER, *names]), ",".join([_finance_row(0), *("" for _ in names)])])


def finance_csv_with_unknown_field_of(characters: int) -> bytes:
    return _lines([FINANCE_HEADER + ",notes", f"{_finance_row(0)},{'x' * characters}"])


def finance_csv_with_email_in_each_row(rows: int) -> bytes:
    sentences = (f"Case {_letters(row)}: write to jane.roe@example.com?" for row in range(rows))
    return _lines([FINANCE_HEADER, *(f"{sentence},other,Please ask in the store.,none" for sentence in sentences)])


def conflict_far_apart(rows: int, wrong_rows: int = 0) -> bytes:
    """The last row contradicts the first."""
    between = [_finance_row(row, "APR" if row <= wrong_rows else "apr") for row in range(1, rows - 1)]
    return _lines([FINANCE_HEADER, _finance_row(0), *between, _finance_row(0, "payment")])


def duplicate_far_apart(rows: int) -> bytes:
    return _lines([FINANCE_HEADER, *map(_finance_row, range(rows - 1)), _finance_row(0)])


def jsonl_key_appears_late(rows: int) -> bytes:
    objects = [*map(_finance_object, range(rows - 1)), _finance_object(rows - 1, branch="north")]
    return _lines(map(json.dumps, objects))


def jsonl_first_rows_lack_a_key(rows: int, lacking: int) -> bytes:
    objects = [_finance_object(row) for row in range(rows)]
    for row in objects[:lacking]:
        del row["escalate_to"]
    return _lines(map(json.dumps, objects))


def second_task_appears_late(rows: int) -> bytes:
    """Leads, and in the last row an objection whose columns the header lacks."""
    leads = (
        f"lead-qualification,Looking for an SUV {_letters(row)},suv,unknown,,,,,,unknown,unknown,unknown,unknown"
        for row in range(rows - 1)
    )
    return _lines([LEAD_COLUMNS, *leads, "objection-handling" + "," * 12])


def array_truncated_late(rows: int) -> bytes:
    return json.dumps([_finance_object(row) for row in range(rows)], indent=1).encode()[:-2]


def deep_json(depth: int) -> bytes:
    """An array of one object whose unknown key brings the depth, counted from the outer array, to `depth`."""
    start = json.dumps(_finance_object(0))[:-1]
    return f'[{start}, "extra": {"[" * (depth - 2)}{"]" * (depth - 2)}}}]'.encode()


def late_bytes(rows: int, hex_bytes: str, each: int = 1, last: int = 3) -> bytes:
    """Plain ASCII rows, and only at the end some rows with the bytes given."""
    rare = bytes.fromhex(hex_bytes)
    plain = [_finance_row(row).encode() for row in range(rows - last)]
    special = [_finance_row(row).encode().replace(b"yearly", rare * each) for row in range(rows - last, rows)]
    return b"".join(line + b"\n" for line in [FINANCE_HEADER.encode(), *plain, *special])


def _blocks(first: str, start: str, straddler: str, ending: str, encoding: str = "utf-8", unit: int = 1) -> bytes:
    """Records of exactly BLOCK bytes, placed so that `straddler` lies across every multiple of BLOCK.

    `first` is what comes before; its last line is padded inside the answer, at `@`. `straddler` is cut in the
    middle of its bytes. Each record holds three distinct letters at `#`.
    """
    cut = len(straddler.encode(encoding)) // unit // 2
    half = BLOCK // unit // 2

    def size(text: str) -> int:
        return len(text.encode(encoding)) // unit

    head = first.replace("@", "x" * (half - size(first) + 1))
    records = []
    for row in range(BLOCKS):
        begin = start.replace("#", _letters(row))
        begin += "x" * (half - cut - size(begin))
        record = begin + straddler
        records.append(record + "x" * (BLOCK // unit - size(record) - size(ending)) + ending)
    content = (head + "".join(records)).encode(encoding)
    for multiple in range(BLOCK, len(content), BLOCK):  # the point of it all
        middle = straddler.encode(encoding)
        at = multiple - cut * unit
        if content[at : at + len(middle)] != middle:
            raise AssertionError(f"nothing lies across byte {multiple}")
    return content


_FIRST = FINANCE_HEADER + "\nThe first question?,apr,@,none\n"


def line_ends_across_blocks(end: str) -> bytes:
    """The first sign of each line end is the last byte of a block; the last record is wrong."""
    first = f"{FINANCE_HEADER}{end}The first question?,apr,"
    content = first + "x" * (BLOCK - 1 - len(first) - len(",none")) + ",none" + end
    for row in range(BLOCKS):
        start = f"Question {_letters(row)}?,{'apr' if row < BLOCKS - 1 else 'APR'},"
        content += start + "x" * (BLOCK - len(end) - len(start) - len(",none")) + ",none" + end
    return content.encode()


def quoted_crlf_across_blocks() -> bytes:
    """Each record but the first lies on two lines; the last is wrong."""
    content = _blocks(_FIRST, 'Question #?,apr,"', "\r\n", '",none\n')
    before, _, after = content.rpartition(b",apr,")
    return before + b",APR," + after


def doubled_quotes_across_blocks() -> bytes:
    return _blocks(_FIRST, 'Question #?,apr,"', '""', '",none\n')


def closing_quote_across_blocks() -> bytes:
    """A closing quote ends a block, the comma after it begins the next."""
    first = "topic,question,answer,escalate_to\napr,The first question?,@,none\n"
    return _blocks(first, 'apr,"Question #, and more ', '",', ",none\n")


def utf8_across_blocks() -> bytes:
    return _blocks(_FIRST, "Question #?,apr,", "\N{AUTOMOBILE}", ",none\n")


def utf16_across_blocks(encoding: str) -> bytes:
    first = "\ufeff" + FINANCE_HEADER + "\nThe first question?,apr,@,none\n"
    return _blocks(first, "Question #?,apr,", "\N{AUTOMOBILE}", ",none\n", encoding, unit=2)


_OBJECT_FIRST = '{"question": "The first question?", "topic": "apr", "answer": "@", "escalate_to": "none"}\n'
_OBJECT_END = '", "escalate_to": "none"}\n'


def json_escaped_quote_across_blocks() -> bytes:
    return _blocks(_OBJECT_FIRST, '{"question": "Question #?", "topic": "apr", "answer": "', r"\"", _OBJECT_END)


def json_unicode_escape_across_blocks() -> bytes:
    return _blocks(_OBJECT_FIRST, '{"question": "Question #?", "topic": "apr", "answer": "', r"\u00e9", _OBJECT_END)


def json_escaped_pair_across_blocks() -> bytes:
    """The pair is cut between its two escapes."""
    start = '{"question": "Question #?", "topic": "apr", "answer": "'
    return _blocks(_OBJECT_FIRST, start, r"\ud83d\ude97", _OBJECT_END)


def json_number_across_blocks() -> bytes:
    """One array; `2018` is cut after `20`, which would be no year."""
    first = '[{"request": "@", "year": 2018, "part_name": "cabin air filter", "position": "none", "quantity": 1}\n'
    start = ',{"part_name": "cabin air filter", "position": "none", "quantity": 1, "model": "#'
    half = BLOCK // 2
    content = first.replace("@", "x" * (half - len(first) + 1))
    for row in range(BLOCKS):
        record = start.replace("#", _letters(row))
        record += "x" * (half - 2 - len(record) - len('", "year": ')) + '", "year": 2018, "request": "'
        content += record + "x" * (BLOCK - len(record) - 3) + '"}\n'
    return (content + "]").encode()


GENERATORS: dict[str, Callable[..., bytes]] = {
    function.__name__: function
    for function in (
        finance_csv, finance_csv_with_answer_of, finance_json_with_answer_of, finance_array_with_answer_of,
        after_blanks, finance_csv_with_unknown_columns, finance_csv_with_unknown_field_of,
        finance_csv_with_email_in_each_row, conflict_far_apart, duplicate_far_apart, jsonl_key_appears_late,
        jsonl_first_rows_lack_a_key, second_task_appears_late, array_truncated_late, deep_json, late_bytes,
        line_ends_across_blocks, quoted_crlf_across_blocks, doubled_quotes_across_blocks,
        closing_quote_across_blocks, utf8_across_blocks, utf16_across_blocks, json_escaped_quote_across_blocks,
        json_unicode_escape_across_blocks, json_escaped_pair_across_blocks, json_number_across_blocks,
    )
}  # fmt: skip


def upload_of(case: dict[str, Any], folder: Path) -> Path:
    """The file of a case: committed, filled in with this year, or made now. Wrong calls may name none."""
    if "generate" in case:
        arguments = dict(case["generate"])
        path = folder / f"{case['name']}.{case['dataFormat']}"
        path.write_bytes(GENERATORS[arguments.pop("function")](**arguments))
        return path
    path = CORPUS / str(case["file"])
    if case.get("template"):
        content = re.sub(
            rb"\{\{year\+(\d)\}\}", lambda found: b"%d" % (date.today().year + int(found[1])), path.read_bytes()
        )
        path = folder / case["file"]
        path.write_bytes(content)
    return path


# --- comparing a report with an expectation ---------------------------------------------------------------------


def validate(case: dict[str, Any], path: Path) -> ValidationReport:
    first, last = case.get("dateRange", [None, None])
    return validate_file(
        path,
        model_type=case["modelType"],
        data_format=case["dataFormat"],
        task=case.get("task"),
        dealership=None,
        department=case.get("department"),
        date_from=date.fromisoformat(first) if first else None,
        date_to=date.fromisoformat(last) if last else None,
    ).report


def matches(pattern: list[Any], found: Found) -> bool:
    def one(wanted: Any, got: Any) -> bool:
        if wanted == "*" or wanted == got:
            return True
        return isinstance(wanted, str) and "|" in wanted and ("" if got is None else got) in wanted.split("|")

    return all(one(wanted, got) for wanted, got in zip(pattern, found, strict=True))


def findings_of(expected: list[list[Any]] | dict[str, Any]) -> list[list[Any]]:
    if isinstance(expected, list):
        return expected
    line, record, column, rule = expected["from"]
    return [[line + step, record + step, column, rule] for step in range(expected["count"])]


def unlike(name: str, wanted: list[list[Any]], got: list[Found]) -> list[str]:
    """What is expected and not there, and what is there and not expected; the most exact patterns choose first."""
    left, missing = Counter(got), []
    for pattern in sorted(wanted, key=lambda pattern: sum("*" in str(part) or "|" in str(part) for part in pattern)):
        exact = (pattern[0], pattern[1], pattern[2], pattern[3])
        hit = exact if left[exact] else next((entry for entry in left if left[entry] and matches(pattern, entry)), None)
        if hit is None:
            missing.append(f"{name}: expected and absent: {pattern}")
        else:
            left[hit] -= 1
    return missing + [f"{name}: not expected: {list(entry)}" for entry in left.elements()]


def differences(expect: dict[str, Any], report: ValidationReport) -> list[str]:
    told: dict[str, Any] = json.loads(report.to_json())
    lines: list[str] = []
    for key in ("valid", "encoding", "delimiter", "errorsTruncated"):
        if key in expect and told[key] != expect[key]:
            lines.append(f"{key}: expected {expect[key]!r}, got {told[key]!r}")
    for key in ("rows", "byRule", "pii"):
        if key in expect:
            wanted, got = expect[key], told[key]
            if key != "rows":  # a rule or kind that never occurred may be left out or be 0
                got = {name: count for name, count in got.items() if count}
            if wanted != got:
                lines.append(f"{key}: expected {wanted}, got {got}")
    for field, counts in expect.get("labels", {}).items():
        if told["labels"].get(field) != counts:
            lines.append(f"labels.{field}: expected {counts}, got {told['labels'].get(field)}")
    for key in ("errors", "warnings"):
        got_findings = [(entry["line"], entry["record"], entry["column"], entry["rule"]) for entry in told[key]]
        if key in expect:
            lines += unlike(key, findings_of(expect[key]), got_findings)
        if f"{key}Listed" in expect and len(got_findings) != expect[f"{key}Listed"]:
            lines.append(f"{key}: expected {expect[f'{key}Listed']} in the list, got {len(got_findings)}")
    for index, part in expect.get("hints", []):
        pattern = expect["errors"][index]
        hints = [
            entry["hint"] or ""
            for entry in told["errors"]
            if matches(pattern, (entry["line"], entry["record"], entry["column"], entry["rule"]))
        ]
        if hints and not any(part in hint for hint in hints):
            lines.append(f"hint of {pattern}: expected {part!r} in it, got {hints}")
    return lines + broken_promises(told)


def broken_promises(told: dict[str, Any]) -> list[str]:
    """What the pages promise of every report, whatever the file."""
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
    listed = Counter(entry["rule"] for entry in told["errors"] + told["warnings"])
    counted = Counter({rule: count for rule, count in told["byRule"].items() if count})
    is_cut = told["errorsTruncated"] or len(told["warnings"]) >= LISTED
    if (listed - counted) if is_cut else (listed != counted):
        lines.append(f"byRule says {dict(counted)}, the lists hold {dict(listed)}")
    lines += [f"no rule of the contract: {rule}" for rule in listed if rule not in RULES]
    lines += [
        f"findings without a message: {entry}" for entry in told["errors"] + told["warnings"] if not entry["message"]
    ]
    if len(told["errors"]) > LISTED:
        lines.append(f"{len(told['errors'])} errors listed")
    if not re.fullmatch("ds_[0-9a-f]{16}", told["datasetId"]):
        lines.append(f"datasetId: {told['datasetId']}")
    return lines


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in CASES])
def test_validation_answers_each_upload_as_the_contract_pages_say(case: dict[str, Any], tmp_path: Path) -> None:
    path = upload_of(case, tmp_path)
    expectations = case.get("expectAny") or [case["expect"]]
    try:
        report = validate(case, path)
    except WrongKindError as error:
        outcome, spoken = "wrong_kind", str(error)
    except UsageError as error:
        outcome, spoken = "wrong_call", str(error)
    except Exception as error:  # whatever it is, it is no answer
        place = traceback.extract_tb(error.__traceback__)[-1]
        outcome, spoken = f"{type(error).__name__}: {error}"[:200] + f" ({place.filename}:{place.lineno})", ""
    else:
        outcome, spoken = "report", report.to_json()
    problems: list[list[str]] = []
    for expect in expectations:
        if expect["outcome"] != outcome:
            problems.append([f"outcome: expected {expect['outcome']}, got {outcome}"])
        else:
            problems.append(differences(expect, report) if outcome == "report" else [])
    leaks = [f"shown in the answer: {secret}" for secret in SECRETS if secret in spoken]
    if outcome == "report" and report.sha256 != hashlib.sha256(path.read_bytes()).hexdigest():
        leaks.append("sha256 is not that of the file")
    if leaks or all(problems):
        told = [line for number, lines in enumerate(problems, 1) for line in [f"-- reading {number}:", *lines]]
        if len(problems) == 1:
            told = problems[0]
        if len(told) > SHOWN:
            told = [*told[:SHOWN], f"... and {len(told) - SHOWN} more"]
        pytest.fail("\n  ".join([f"{case['name']}: {case['why']}", *leaks, *told]), pytrace=False)


def test_every_file_of_the_corpus_belongs_to_a_case_and_is_small() -> None:
    named = {case["file"] for case in CASES if "file" in case} - {"never-read.csv"}  # of calls that are refused before
    there = {path.name: path.stat().st_size for path in CORPUS.iterdir() if path.name != "manifest.json"}
    assert set(there) == named
    assert {name for name, size in there.items() if size > LARGEST_COMMITTED} == set()


def test_every_case_has_a_name_of_its_own_a_reason_and_something_to_upload() -> None:
    assert [name for name, count in Counter(case["name"] for case in CASES).items() if count > 1] == []
    for case in CASES:
        assert case["why"]
        assert ("file" in case) != ("generate" in case), case["name"]
        assert ("expect" in case) != ("expectAny" in case), case["name"]


def test_the_same_upload_again_has_the_same_dataset_id_and_another_meaning_another_id() -> None:
    path = CORPUS / "happy-finance-csv.csv"
    common: dict[str, Any] = {
        "task": None, "dealership": "north", "department": "finance",
        "date_from": date(2024, 1, 1), "date_to": date(2024, 12, 31),
    }  # fmt: skip

    def identity(**changes: Any) -> str:
        call: dict[str, Any] = {"model_type": "finance-assistant", "data_format": "csv", **common, **changes}
        return validate_file(path, **call).report.dataset_id

    other_meanings: list[dict[str, Any]] = [
        {"dealership": "south"}, {"dealership": None}, {"department": None}, {"date_from": date(2024, 1, 2)},
        {"date_to": date(2024, 12, 30)}, {"model_type": "parts-specialist"},
    ]  # fmt: skip
    ids = [identity(), *(identity(**changes) for changes in other_meanings)]
    assert identity() == ids[0]
    assert len(set(ids)) == len(ids)
