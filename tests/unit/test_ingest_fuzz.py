"""Whatever bytes come in, validation answers: with a report that keeps its promises, or with an error of ours.

Good files of every kind are damaged (bytes changed, cut out, doubled, put in, cut off, spliced with another kind)
and validated. `NEUROWEAVER_FUZZ_EXAMPLES=5000 pytest tests/unit/test_ingest_fuzz.py` looks for longer, and anew.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuroweaver.errors import NeuroWeaverError
from pipelines.validate import validate_file

EXAMPLES = int(os.environ.get("NEUROWEAVER_FUZZ_EXAMPLES", "100"))  # of each kind
FOUND = Path(__file__).parents[1] / "corpus" / "fuzz"  # what fuzzing found, kept so that it stays mended
LARGEST = 16_384  # bytes of a damaged file
DEADLINE = timedelta(seconds=20)  # of one file: generous to a busy machine, and still no hang


@dataclass(frozen=True)
class Upload:
    model_type: str
    data_format: str
    content: bytes


_LEAD = "lead-qualification,Looking for an SUV under 30k,suv,used,Honda,CR-V,2021,,30000,total,within_30d,cash,no"
_LEAD_COLUMNS = (
    "task,customer_message,vehicle_type,condition,make,model,year,budget_min,budget_max,budget_kind,timeline,"
    "financing,trade_in,occurred_at"
)
_SERVICE = {
    "year": 2018, "make": "Honda", "model": "CR-V", "mileage": 61250, "complaint": "It squeaks, 5 °C and colder",
    "system": "SERVICE_BRAKES", "severity": "prompt", "causes": ["worn pads"], "steps": "look; measure",
    "vin": "5J6RM4H51GL000000",
}  # fmt: skip
_FINANCE_TURNS = [{"role": "user", "content": "What is an APR?"}, {"role": "assistant", "content": "{}"}]
_SALESFORCE = {
    "attributes": {"type": "Lead", "url": "/services/data/v60.0/sobjects/Lead/00Q5e0000000001AAA"},
    "Id": "00Q5e0000000001AAA", "LastName": "Testerly", "Email": "imogen.testerly@example.com",
    "Description": "Call 734-555-0101 \U0001f697 please", "CreatedDate": "2025-03-05T18:40:12.000+0000",
    "Budget__c": 35000,
}  # fmt: skip
_ADF = """<?xml version="1.0" encoding="UTF-8"?>
<?adf version="1.0"?>
<adf>
  <prospect status="new"><!-- first -->
    <id source="Example Portal">A-1</id>
    <requestdate>2025-03-05T18:40:12-06:00</requestdate>
    <vehicle interest="buy" status="used">
      <year>2019</year><make>Ford</make><model>F-150</model><bodystyle>pickup</bodystyle>
      <finance><method>finance</method><amount type="monthly" limit="maximum">$1,480.50</amount></finance>
      <comments><![CDATA[Is <b>this</b> one there? 5 < 6 & more]]></comments>
    </vehicle>
    <vehicle interest=\u201ctrade-in\u201d status=used><year>2016</year></vehicle>
    <customer><contact><name part="first">Ren\u00e9e</name><phone>734-555-0101</phone></contact>
      <timeframe>Within two weeks</timeframe><comments>Caf\u00e9 &amp; &lt;br&gt; R&D &#8217;</comments></customer>
  </prospect>
  <prospect><customer><comments>Another car</comments></customer></prospect>
</adf>
<adf><prospect><customer><comments>A third</comments></customer></prospect></adf>
"""


def _lines(*lines: str, end: str = "\n") -> str:
    return "".join(line + end for line in lines)


SEEDS: dict[str, Upload] = {
    "csv": Upload(
        "automotive-sales",
        "csv",
        _lines(
            _LEAD_COLUMNS, _LEAD + ",2025-03-05", '"lead-qualification","A ""red""\nvan",van,new,,,,,,unknown,'
            "unknown,lease,yes,", _LEAD + ",", "",
        ).encode(),
    ),
    "csv of another encoding": Upload(
        "service-advisor",
        "csv",
        _lines(
            "year;make;model;mileage;complaint;vin;system;severity;causes;steps",
            '2018;Honda;CR-V;61250;"It squeaks; 5 °C";5J6RM4H51GL000000;SERVICE_BRAKES;prompt;"worn pads;dust";look',
            "2019;Kia;Rio;;Stalls;;ENGINE;stop_driving;pump;tow",
            end="\r\n",
        ).encode("cp1252"),
    ),
    "csv of utf-16": Upload(
        "finance-assistant",
        "csv",
        _lines("question\ttopic\tanswer\tescalate_to", "What is an APR?\tapr\tA yearly cost \U0001f697\tnone").encode(
            "utf-16"
        ),
    ),
    "json": Upload(
        "service-advisor",
        "json",
        json.dumps([_SERVICE, {**_SERVICE, "complaint": "Smoke \ud83d\ude97"}], indent=1).encode(),
    ),
    "json lines": Upload(
        "service-advisor",
        "json",
        _lines(
            *(json.dumps({**_SERVICE, "complaint": text}, ensure_ascii=False) for text in ("It shakes", "Café"))
        ).encode(),
    ),
    "chat": Upload(
        "finance-assistant", "json", _lines(*(json.dumps({"messages": _FINANCE_TURNS}) for _ in range(2))).encode()
    ),
    "adf": Upload("automotive-sales", "automotive-crm", _ADF.encode()),
    "adf of windows-1252": Upload(
        "automotive-sales", "automotive-crm", _ADF.replace("UTF-8", "windows-1252").encode("cp1252")
    ),
    "adf of utf-16": Upload("automotive-sales", "automotive-crm", _ADF.encode("utf-16")),
    "salesforce csv": Upload(
        "automotive-sales",
        "automotive-crm",
        _lines(
            "Id,LastName,Email,Description,CreatedDate,Budget__c",
            '00Q5e0000000001AAA,Testerly,imogen.testerly@example.com,"A ""red""\r\none",2025-03-05T18:40:12.000+0000,1',
            "00Q5e0000000002AAA,Mockford,,A van,yesterday,",
        ).encode(),
    ),
    "salesforce rest": Upload(
        "automotive-sales",
        "automotive-crm",
        json.dumps({"totalSize": 2, "done": True, "records": [_SALESFORCE, {**_SALESFORCE, "Description": "A van"}]},
                   indent=1).encode(),
    ),
    "salesforce bulk": Upload("automotive-sales", "automotive-crm", json.dumps([_SALESFORCE, _SALESFORCE]).encode()),
}  # fmt: skip

# What breaks readers: signs that open, close and end things, encodings' marks, numbers too large, dangerous XML.
TOKENS = [
    *(bytes([byte]) for byte in b"\x00\x08\x0b\x1a\x85\xa0\xc3\xe9\xff\t\n\r \"',;|\\<>&/=:[]{}0-"),
    b"\r\n", b"\n\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\xf0\x9f", b"\x00<",
    b'""', b'","', b"'\"", b'"\n"', b"=1+1", b"imogen.testerly@example.com", b"4111 1111 1111 1111",
    b"\\u0000", b"\\ud83d", b"\\uDE97", b"\\x", b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"null", b"true", b"[" * 70,
    b'{"a":' * 70, b'"messages": 1,', b'"records": [', b'"task": [], ', b"}{", b"][", b"//", b"\xc2\xa0",
    b"<![CDATA[", b"]]>", b"<!--", b"-->", b"<?", b"?>", b"<!DOCTYPE a [", b"<!ENTITY a 'b'>", b"&a;", b"&#0;", b"&#xD800;",
    b"&#x110000;", b"&#99999999999999999999;", b"&nbsp;", b"&amp;lt;", b"<prospect>", b"</prospect>", b"<prospect", b"</adf>",
    b"<adf>", b"<adf/>", b"<b>", b"<br>", b"<a b=", b"<b>" * 70, b"</comments>", b"<comments>", b"<vehicle interest=lease>",
    b'<x xmlns="http://www.w3.org/2001/XInclude"/>', b"\xe2\x80\x9c", b"\x93", b"encoding='utf-16'", b"encoding='utf-7'",
    b'<?xml version="1.0"?>', b"<timeframe>", b"<year>1e3</year>", b"<year>\xc2\xb2</year>", b"$1,2,3.4.5", b"0000-00-00",
    b"9999-12-31T23:59:60+24:00", b"\xd9\xa1\xd9\xa2\xd9\xa3\xd9\xa4", b"PK\x03\x04", b"<html>",
]  # fmt: skip
EDITS = ["value", "value", "value", "token", "bytes", "flip", "cut", "repeat", "move", "truncate", "splice"]
VALUE_STARTS = re.compile(rb"(?:>|,|;|\t|\n|[:\[] ?\"?)\x00?")  # after them a cell or a text often begins
ENCODINGS = {
    "utf-8": "utf-8", "utf-8-bom": "utf-8-sig", "utf-16-le": "utf-16-le", "utf-16-be": "utf-16-be",
    "windows-1252": "cp1252", None: "utf-8",
}  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content after one to six edits; a position is drawn as a share of the length, so that it shrinks well."""

    def position() -> int:
        return draw(st.integers(0, len(content)))

    for _ in range(draw(st.integers(1, 6))):
        at = position()
        end = min(len(content), at + draw(st.integers(0, 40)))
        edit = draw(st.sampled_from(EDITS))
        if edit == "value" and (starts := [found.end() for found in VALUE_STARTS.finditer(content)]):
            at = draw(st.sampled_from(starts))
            content = content[:at] + draw(st.sampled_from(TOKENS)) + content[at:]
        elif edit == "token":
            content = content[:at] + draw(st.sampled_from(TOKENS)) + content[at:]
        elif edit == "bytes":
            content = content[:at] + draw(st.binary(max_size=8)) + content[end:]
        elif edit == "flip" and at < len(content):
            content = content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
        elif edit == "cut":
            content = content[:at] + content[end:]
        elif edit == "repeat":
            content = content[:end] + content[at:end] * draw(st.integers(1, 80)) + content[end:]
        elif edit == "move":
            elsewhere = position()
            content = content[:elsewhere] + content[at:end] + content[elsewhere:]
        elif edit == "truncate":
            content = content[:at]
        elif edit == "splice":
            other = draw(st.sampled_from(list(SEEDS.values()))).content
            content = content[:at] + other[draw(st.integers(0, len(other))) :]
        content = content[:LARGEST]
    return content


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from (name, *texts_in(part))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from texts_in(part)


def last_line_of(content: bytes, encoding: str | None) -> int:
    return 1 + len(re.findall(r"\r\n|\r|\n", content.decode(ENCODINGS[encoding], errors="replace")))


def check_promises(content: bytes, upload: Upload, folder: Path) -> None:
    path = folder / "upload"
    path.write_bytes(content)
    try:
        answer = validate_file(
            path,
            model_type=upload.model_type,
            data_format=upload.data_format,
            task=None,
            dealership=None,
            department=None,
            date_from=date(2025, 1, 1),
            date_to=date(2025, 12, 31),
        )
    except NeuroWeaverError as error:
        str(error).encode()
        return
    told = json.loads(answer.report.to_json())
    for text in texts_in(told):
        text.encode()  # a lone surrogate can't be
    json.dumps(told, allow_nan=False)
    rows = list(answer.rows)
    for row in rows:
        for text in texts_in([*row.values.values(), row.example_id, row.customer_id]):
            text.encode()
    counts = [told["rows"][name] for name in ("total", "valid", "quarantined", "duplicates")]
    if None in counts:
        assert counts == [None] * 4
        assert not told["valid"]
    else:
        assert counts[0] == sum(counts[1:])
        assert min(counts) >= 0
        assert not told["valid"] or (counts[1] > 0 and counts[2] * 10 <= counts[0])
        assert not told["valid"] or len(rows) == counts[1]
    if not told["valid"]:
        assert told["errors"]
    last_line = last_line_of(content, told["encoding"])
    for entry in told["errors"] + told["warnings"]:
        assert entry["line"] is None or 1 <= entry["line"] <= last_line, (entry, last_line)
        assert entry["record"] is None or counts[0] is None or 0 <= entry["record"] < counts[0], entry


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.timeout(600 if EXAMPLES <= 500 else 7200)
@pytest.mark.parametrize("kind", list(SEEDS))
def test_a_damaged_file_gets_a_report_that_keeps_its_promises_or_an_error_of_ours(kind: str, folder: Path) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=DEADLINE,
        derandomize="NEUROWEAVER_FUZZ_EXAMPLES" not in os.environ,
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(damaged(SEEDS[kind].content))
    def keeps_promises(content: bytes) -> None:
        check_promises(content, SEEDS[kind], folder)

    keeps_promises()


@pytest.mark.parametrize("name", sorted(path.name for path in FOUND.iterdir()))
def test_a_file_that_once_broke_a_reader_gets_an_answer_as_whatever_it_is_uploaded(name: str, folder: Path) -> None:
    content = (FOUND / name).read_bytes()
    for model_type, data_format in {(upload.model_type, upload.data_format) for upload in SEEDS.values()}:
        check_promises(content, Upload(model_type, data_format, b""), folder)


@pytest.mark.parametrize("kind", list(SEEDS))
def test_the_undamaged_file_is_read(kind: str, folder: Path) -> None:
    upload = SEEDS[kind]
    check_promises(upload.content, upload, folder)
    path = folder / "upload"
    answer = validate_file(
        path,
        model_type=upload.model_type,
        data_format=upload.data_format,
        task=None,
        dealership=None,
        department=None,
        date_from=None,
        date_to=None,
    )
    assert answer.report.rows.total
