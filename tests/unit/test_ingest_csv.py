from __future__ import annotations

import gzip
import io
import pickle
import random
import zipfile
from pathlib import Path

import pytest

from neuroweaver.errors import InputError, UsageError
from pipelines.ingest import csv_reader
from pipelines.ingest.frame import CellProblem, FileProblemError, Record, Source
from pipelines.ingest.registry import detect_format, open_source
from pipelines.ingest.sniff import WrongKindError

KNOWN = ("question", "topic", "answer", "escalate_to")
TEXT = "question,topic,answer,escalate_to\nWhat is APR?,apr,A yearly rate.,none\n"


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


def read_bytes(tmp_path: Path, data: bytes) -> Document:
    path = tmp_path / "upload.bin"
    path.write_bytes(data)
    return Document(open_source(path, "csv", known=KNOWN))


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (TEXT.encode(), "utf-8"),
        (b"\xef\xbb\xbf" + TEXT.encode(), "utf-8-bom"),
        (TEXT.encode("utf-16"), "utf-16-le"),
        (TEXT.encode("utf-16-le"), "utf-16-le"),
        (TEXT.encode("utf-16-be"), "utf-16-be"),
        (b"\xfe\xff" + TEXT.encode("utf-16-be"), "utf-16-be"),
        (TEXT.replace("APR", "café").encode("cp1252"), "windows-1252"),
        (TEXT.replace("APR", "café").encode(), "utf-8"),
    ],
)
def test_csv_encoding_is_detected_and_the_first_column_keeps_its_name(
    tmp_path: Path, data: bytes, encoding: str
) -> None:
    document = read_bytes(tmp_path, data)
    assert document.encoding == encoding
    assert document.columns == KNOWN
    assert document.records[0].values["question"] in ("What is APR?", "What is café?")
    assert document.records[0].line == 2


def test_csv_that_is_utf8_but_for_one_row_stays_utf8(tmp_path: Path) -> None:
    data = TEXT.encode() + "É?,apr,oui,none\n".encode() + b"\xe9t\xe9,apr,x,none\n" + b"ok,apr,x,none\n"
    document = read_bytes(tmp_path, data)
    assert document.encoding == "utf-8"
    assert [(record.line, [p.rule for p in record.problems]) for record in document.records] == [
        (2, []), (3, []), (4, ["encoding"]), (5, []),
    ]  # fmt: skip
    assert document.records[2].problems[0].column == "question"


def test_csv_with_a_byte_that_no_encoding_has_stays_utf8(tmp_path: Path) -> None:
    document = read_bytes(tmp_path, TEXT.encode() + b"\xff\xfe,apr,x,none\n")
    assert document.encoding == "utf-8"
    assert document.records[1].problems[0].rule == "encoding"


def test_csv_with_a_nul_in_a_cell_names_the_cell(tmp_path: Path) -> None:
    document = read_bytes(tmp_path, TEXT.encode() + b"ok,apr,a\0b,none\n")
    assert [(p.rule, p.column) for p in document.records[1].problems] == [("encoding", "answer")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_delimiter_is_detected_even_where_others_stand_in_the_cells(tmp_path: Path, delimiter: str) -> None:
    text = delimiter.join(KNOWN) + "\n" + delimiter.join(['"a, b; c | d"', "apr", "x", "none"]) + "\n"
    document = read_bytes(tmp_path, text.encode())
    assert document.delimiter == delimiter
    assert document.records[0].values["question"] == "a, b; c | d"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_lines_are_physical_whatever_ends_them(tmp_path: Path, end: str) -> None:
    lines = ["question,topic,answer,escalate_to", "", '"two', 'lines\u2028here",apr,x,none', "", "next,apr,x,none"]
    document = read_bytes(tmp_path, end.join(lines).encode())
    assert [record.line for record in document.records] == [3, 6]
    assert document.records[0].values["question"] == f"two{end}lines\u2028here"


def test_csv_quotes_inside_an_unquoted_field_are_text(tmp_path: Path) -> None:
    document = read_bytes(tmp_path, TEXT.encode() + b'6\'4" tall "so",apr,"say ""hi""",none\n')
    assert document.records[1].values["question"] == '6\'4" tall "so"'
    assert document.records[1].values["answer"] == 'say "hi"'


def test_csv_unclosed_quote_is_the_files_fault_and_named_by_its_line(tmp_path: Path) -> None:
    document = read_bytes(tmp_path, TEXT.encode() + b'"open,apr,x,none\n' + b"ok,apr,x,none\n" * 9000)
    assert [(p.rule, p.line) for p in document.problems_of_file] == [("malformed", 3)]


def test_csv_row_with_another_field_count_is_malformed_and_the_next_is_read(tmp_path: Path) -> None:
    document = read_bytes(tmp_path, TEXT.encode() + b'a,b,c,d,e\nshort,apr\n"x"y,apr,x,none\nok,apr,x,none\n')
    assert [is_broken(record) for record in document.records] == [False, True, True, True, False]
    assert [record.line for record in document.records] == [2, 3, 4, 5, 6]
    assert document.records[1].problems[0].message == "the row has 5 fields, the header 4"


def test_csv_header_is_trimmed_and_unnamed_trailing_columns_are_ignored(tmp_path: Path) -> None:
    document = read_bytes(
        tmp_path, b" question , topic,answer,escalate_to,,\na,apr,x,none,,\nb,apr,x,none\nc,apr,x,none,!,\n"
    )
    assert document.columns == KNOWN
    assert [is_broken(record) for record in document.records] == [False, False, True]


def test_csv_known_column_twice_is_malformed(tmp_path: Path) -> None:
    document = read_bytes(tmp_path, b"question,topic,answer,escalate_to,topic\na,apr,x,none,apr\n")
    assert [(p.rule, p.line, p.column) for p in document.problems_of_file] == [("malformed", 1, "topic")]


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b"\n\r\n\n", b"\xff\xfe"])
def test_csv_without_rows_is_empty(tmp_path: Path, data: bytes) -> None:
    document = read_bytes(tmp_path, data)
    assert [(p.rule, p.line) for p in document.problems_of_file] == [("empty", 1)]


def test_csv_field_past_the_module_limit_is_read_whole(tmp_path: Path) -> None:
    document = read_bytes(tmp_path, TEXT.encode() + b'"' + b"x" * 300_000 + b'",apr,x,none\n')
    assert len(document.records[1].values["question"]) == 300_000


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.csv", TEXT)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "PNG"),
        (zip_bytes(), "ZIP"),
        (gzip.compress(TEXT.encode()), "gzip"),
        (pickle.dumps({"a": 1}), "pickle"),
        (b"PAR1" + bytes(20), "Parquet"),
        (b"  <!DOCTYPE html><html></html>", "HTML"),
        (bytes(range(32)) * 20, "binary"),
        (b'[{"question": "x"}]', "json"),
        (b"<adf></adf>", "XML"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_csv_content_of_another_kind_is_refused_whatever_its_name(
    tmp_path: Path, data: bytes, name: str, suffix: str
) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_bytes(data)
    with pytest.raises(WrongKindError, match=f"(?i){name}"):
        open_source(path, "csv", known=KNOWN)


def test_csv_unknown_format_names_the_known_ones_and_a_missing_file_its_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="csv, json, automotive-crm"):
        open_source(tmp_path / "x", "xlsx")
    with pytest.raises(InputError, match="nowhere.csv"):
        open_source(tmp_path / "nowhere.csv", "csv")
    with pytest.raises(InputError, match="not a file"):
        open_source(tmp_path, "csv")


@pytest.mark.parametrize(
    ("text", "found"), [(TEXT, "csv"), ('{"a": 1}', "json"), ("\n [ ]", "json"), ("<?adf?><adf/>", "automotive-crm")]
)
def test_csv_json_and_adf_are_told_apart_by_content(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "upload.png"
    path.write_text(text)
    assert detect_format(path) == found


SIGNS = ["a", "é", "\u2028", ",", ";", '"', '""', "\n", "\r\n", "\r", " ", "\t", "x,y", "\u00a0", "0"]


@pytest.mark.parametrize("seed", range(40))
def test_csv_blocks_give_what_the_csv_module_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Blocks of a few bytes, cells of every sign that matters, now and then a row that is not as it should be."""
    order = random.Random(seed)
    end = order.choice(["\n", "\r\n", "\r"])
    odd = order.choice([0.0, 0.02])
    rows = []
    for _ in range(300):
        cells = ["".join(order.choices(SIGNS, k=order.randrange(5))) for _ in range(4)]
        quoted = [f'"{cell.replace(chr(34), chr(34) * 2)}"' if order.random() < 0.9 else "plain" for cell in cells]
        rows.append(
            ",".join(quoted) if order.random() >= odd else order.choice(["", " ", "a,b", 'a"b,c,d,e', "a,b,c,d,"])
        )
    data = (",".join(KNOWN) + end + end.join(rows) + order.choice(["", end])).encode()

    def rows_of(document: Document) -> list[object]:
        return [(r.line, r.values, [p.rule for p in r.problems]) for r in document.records] + document.problems_of_file

    monkeypatch.setattr(csv_reader, "_BLOCK", order.choice([50, 400, 5000]))
    in_blocks = rows_of(read_bytes(tmp_path, data))
    monkeypatch.setattr(csv_reader.csv_blocks, "record_end", lambda *_, **__: None)
    assert in_blocks == rows_of(read_bytes(tmp_path, data))
    assert len(in_blocks) > 200


def test_csv_blocks_are_parsed_by_arrow_where_quotes_stand_as_they_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the test above would compare the csv module with itself."""
    monkeypatch.setattr(csv_reader, "_records", lambda *_: pytest.fail("the csv module was asked"))
    document = read_bytes(tmp_path, TEXT.encode() + b'"two\nlines, ""so""",apr,x,none\r\nlast,apr,x,none')
    assert [record.line for record in document.records] == [2, 3, 5]
    assert document.records[1].values["question"] == 'two\nlines, "so"'
