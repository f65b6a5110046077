from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from neuroweaver.tasks import FINANCE_ANSWER, LEAD_QUALIFICATION, OBJECTION_HANDLING
from pipelines.ingest.chat import read_turns
from pipelines.ingest.frame import CellProblem, FileProblemError, Record, Source
from pipelines.ingest.registry import open_source

KNOWN = ("question", "topic", "answer", "escalate_to")
ROW = {"question": "What is APR?", "topic": "apr", "answer": "A yearly rate.", "escalate_to": "none"}
LINE = json.dumps(ROW)


class Document:
    """A file that was read whole: its records with their place, or the problem that ended the reading."""

    def __init__(self, source: Source) -> None:
        self.encoding, self.delimiter, self.columns = source.encoding, source.delimiter, source.columns
        self.records: list[Record] = []
        self.problems_of_file: list[CellProblem] = []
        try:
            self.records = [record for frame in source.frames() for record in frame.records()]
        except FileProblemError as error:
            self.problems_of_file = [error.problem]


def is_broken(record: Record) -> bool:
    return any(problem.column is None for problem in record.problems)


def read_text(tmp_path: Path, text: str, encoding: str = "utf-8") -> Document:
    path = tmp_path / "upload"
    path.write_bytes(text.encode(encoding))
    return Document(open_source(path, "json", known=KNOWN))


def rules_of_file(document: Document) -> list[tuple[str, int | None]]:
    return [(problem.rule, problem.line) for problem in document.problems_of_file]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_json_array_gives_the_line_of_each_opening_brace(tmp_path: Path, end: str) -> None:
    document = read_text(tmp_path, json.dumps([ROW, ROW, ROW], indent=2).replace("\n", end))
    assert [record.line for record in document.records] == [2, 8, 14]
    assert document.records[2].values == ROW


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_json_lines_skips_blank_lines_but_counts_them(tmp_path: Path, encoding: str) -> None:
    document = read_text(tmp_path, f"{LINE}\n\n{LINE}\r\n{LINE}", encoding)
    assert [record.line for record in document.records] == [1, 3, 4]


def test_json_line_separator_inside_a_text_is_no_line_end(tmp_path: Path) -> None:
    document = read_text(tmp_path, json.dumps({**ROW, "answer": "a\u2028b"}, ensure_ascii=False) + f"\n{LINE}\n")
    assert [record.line for record in document.records] == [1, 2]


@pytest.mark.parametrize(
    "line",
    ['{"question": "cut', '{"a": 1, "a": 2}', '{"a": {"b": 1, "b": 2}}', '{"a": NaN}', '{"a": -Infinity}', "42", "[1]",
     "null", f"{LINE} {LINE}", "{'a': 1}", '{"a": "tab\there"}'],
)  # fmt: skip
def test_json_broken_line_is_malformed_and_the_next_is_read(tmp_path: Path, line: str) -> None:
    document = read_text(tmp_path, f"{LINE}\n{line}\n{LINE}\n")
    assert [[p.rule for p in record.problems] for record in document.records] == [[], ["malformed"], []]
    assert [record.line for record in document.records] == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"[{LINE},\n{LINE}", 2),
        (f"[{LINE}\n{LINE}]", 2),
        (f"[{LINE},\n]", 2),
        (f'[{LINE},\n{{"a": 1, "a": 2}}]', 2),
        (f'[{LINE},\n{{"a": NaN}}]', 2),
        (f"[{LINE}]\nmore", 2),
        ('"a text"', 1),
        ("42", 1),
        (json.dumps({"data": [ROW]}), 1),
        (json.dumps(ROW, indent=1), 1),
        (f"{LINE}\n" + '{"a": ' * 70 + "1" + "}" * 70, 2),
        ("[" * 100_000, 1),
    ],
)
def test_json_file_that_is_malformed_as_a_whole_says_where(tmp_path: Path, text: str, line: int) -> None:
    document = read_text(tmp_path, text)
    assert rules_of_file(document) == [("malformed", line)]
    assert document.records == []


def test_json_depth_of_64_is_read_and_65_is_not(tmp_path: Path) -> None:
    nested = '{"a": ' * 64 + "1" + "}" * 64
    assert rules_of_file(read_text(tmp_path, nested)) == []
    assert rules_of_file(read_text(tmp_path, '{"a": ' + nested + "}")) == [("malformed", 1)]


@pytest.mark.parametrize("text", ["", " \n "])
def test_json_without_rows_is_empty(tmp_path: Path, text: str) -> None:
    assert rules_of_file(read_text(tmp_path, text)) == [("empty", 1)]


def test_json_element_that_is_no_object_is_a_malformed_row(tmp_path: Path) -> None:
    document = read_text(tmp_path, f"[{LINE}, 3, {LINE}]")
    assert [is_broken(record) for record in document.records] == [False, True, False]


def test_json_lone_surrogate_and_nul_are_encoding_problems(tmp_path: Path) -> None:
    document = read_text(tmp_path, '{"question": "\\ud83d", "causes": ["a", "b\\u0000"]}')
    assert [(p.rule, p.column) for p in document.records[0].problems] == [
        ("encoding", "question"),
        ("encoding", "causes"),
    ]


def turns(user: str, assistant: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]}


def test_json_chat_answer_states_some_labels_and_leaves_the_rest_out() -> None:
    answer = '{"vehicleType": "suv", "budget": {"kind": "total", "max": 30000}}'
    values, problems = read_turns(turns("an SUV, 30k", answer), LEAD_QUALIFICATION)
    assert problems == ()
    assert values == {
        "customer_message": "an SUV, 30k",
        "vehicle_type": "suv",
        "budget_kind": "total",
        "budget_max": 30000,
    }


def test_json_chat_user_turn_may_be_the_prompt_itself() -> None:
    prompt = OBJECTION_HANDLING.template.replace("{objection}", "too dear").replace("{vehicleDetails}", "2021 CR-V")
    answer = json.dumps(
        [
            {"angle": "price", "response": "a"},
            {"angle": "features", "response": "b"},
            {"angle": "value_proposition", "response": "c"},
        ]
    )
    values, problems = read_turns(turns(prompt, answer), OBJECTION_HANDLING)
    assert problems == ()
    assert values["objection"] == "too dear"
    assert values["vehicle_details"] == "2021 CR-V"
    assert values["value_response"] == "c"


def test_json_chat_plain_answer_is_the_one_label_of_free_text() -> None:
    values, problems = read_turns({**turns("What is APR?", "A yearly rate."), "topic": "apr"}, FINANCE_ANSWER)
    assert (values, problems) == ({"question": "What is APR?", "answer": "A yearly rate.", "topic": "apr"}, ())


@pytest.mark.parametrize(
    ("messages", "rule"),
    [
        (None, "missing_value"),
        ([], "missing_value"),
        ([{"role": "user", "content": "hi"}], "missing_value"),
        ([{"role": "assistant", "content": "{}"}], "missing_value"),
        ([{"role": "user", "content": "hi"}, {"role": "assistant", "content": " "}], "missing_value"),
        ([{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}], "missing_value"),
        ([{"role": "tool", "content": "hi"}, {"role": "assistant", "content": "x"}], "enum"),
        ("hi", "type"),
        (["hi"], "type"),
        ([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Sure, come by!"}], "type"),
        ([{"role": "user", "content": "hi"}, {"role": "assistant", "content": '{"colour": "red"}'}], "type"),
        ([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "{}"}], "type"),
    ],
)
def test_json_chat_without_a_question_and_a_right_answer_is_refused(messages: object, rule: str) -> None:
    _, problems = read_turns({"messages": messages}, LEAD_QUALIFICATION)
    assert [(p.rule, p.column) for p in problems] == [(rule, "messages")]


def test_json_with_another_key_in_every_record_takes_linear_time(tmp_path: Path) -> None:
    started = time.perf_counter()
    document = read_text(tmp_path, "".join(json.dumps({**ROW, f"key{number}": 1}) + "\n" for number in range(20_000)))
    assert len(document.records) == 20_000
    assert document.records[-1].values == {**ROW, "key19999": 1}
    assert time.perf_counter() - started < 10


def test_json_array_says_where_it_is_broken_however_much_follows(tmp_path: Path) -> None:
    text = f'[{LINE},\n{{"question": what}},\n' + f"{LINE},\n" * 30_000 + f"{LINE}]"
    assert len(text) > 2_000_000
    (problem,) = read_text(tmp_path, text).problems_of_file
    assert (problem.line, problem.message) == (2, "the array can't be read: Expecting value")


def test_json_behind_many_blank_lines_keeps_its_line_numbers(tmp_path: Path) -> None:
    document = read_text(tmp_path, " \n" * 2_000_000 + f"{LINE}\n{LINE}\n")
    assert [record.line for record in document.records] == [2_000_001, 2_000_002]
    (record,) = read_text(tmp_path, "\n" * 2_000_000 + f"[\n{LINE}]").records
    assert record.line == 2_000_002
