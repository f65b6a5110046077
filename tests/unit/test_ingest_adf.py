from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.ingest import adf_words
from pipelines.ingest.document import Document
from pipelines.ingest.registry import read
from pipelines.ingest.sniff import WrongKindError


def read_text(tmp_path: Path, text: str, encoding: str = "utf-8") -> Document:
    path = tmp_path / "upload"
    path.write_bytes(text.encode(encoding))
    return read(path, "automotive-crm")


def lead(vehicle: str = "", customer: str = "<comments>Still there?</comments>", attributes: str = "") -> str:
    return (
        f'<?adf version="1.0"?>\n<adf>\n<prospect>\n<vehicle{attributes}>{vehicle}</vehicle>\n'
        f"<customer>{customer}</customer>\n</prospect>\n</adf>\n"
    )


def labels(tmp_path: Path, *args: str) -> dict[str, Any]:
    document = read_text(tmp_path, lead(*args))
    assert document.problems_of_file == ()
    values = dict(document.records[0].values)
    assert values.pop("task") == "lead-qualification"
    assert values.pop("customer_message")
    return values


def test_adf_label_that_is_not_stated_is_left_out(tmp_path: Path) -> None:
    assert labels(tmp_path) == {}
    assert labels(tmp_path, "<year>0</year><make></make><model> </model><bodystyle/>") == {}


def test_adf_elements_become_labels(tmp_path: Path) -> None:
    vehicle = """<year>2019</year><make>FORD</make><model>F-150</model><bodystyle>PICKUP</bodystyle>
      <finance><method>Finance</method><amount type="downpayment" limit="exact">4000</amount>
      <amount type="MONTHLY" limit="Maximum" currency="USD">$480</amount></finance>"""
    customer = "<timeframe>Within two weeks</timeframe><comments>Hi</comments>"
    assert labels(tmp_path, vehicle, customer, ' interest="BUY" status="Used"') == {
        "year": "2019", "make": "Ford", "model": "F-150", "vehicle_type": "truck", "condition": "used",
        "financing": "finance", "budget_kind": "monthly", "budget_max": "$480", "timeline": "within_30d",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("limit", "bounds"),
    [
        ("minimum", {"budget_min": "9000"}),
        ("maximum", {"budget_max": "9000"}),
        ("exact", {"budget_min": "9000", "budget_max": "9000"}),
    ],
)
def test_adf_limit_says_which_end_of_the_budget(tmp_path: Path, limit: str, bounds: dict[str, str]) -> None:
    vehicle = f'<finance><amount type="total" limit="{limit}">9000</amount></finance>'
    assert labels(tmp_path, vehicle) == {"budget_kind": "total", **bounds}


def test_adf_zero_and_foreign_amounts_are_not_stated(tmp_path: Path) -> None:
    vehicle = '<finance><amount type="total">0.00</amount><amount type="monthly" currency="CAD">300</amount></finance>'
    assert labels(tmp_path, vehicle) == {}


def test_adf_interest_in_a_lease_is_financing_and_a_trade_in_is_a_label(tmp_path: Path) -> None:
    assert labels(tmp_path, "", "<comments>x</comments>", ' interest="lease"') == {"financing": "lease"}
    vehicle = '<make>Honda</make></vehicle><vehicle interest="trade-in"><make>Kia</make><year>2009</year>'
    assert labels(tmp_path, vehicle) == {"make": "Honda", "trade_in": "yes"}


def test_adf_two_models_asked_for_give_no_model(tmp_path: Path) -> None:
    vehicle = "<year>2025</year><model>Jetta</model></vehicle><vehicle><year>2025</year><model>Golf</model>"
    assert labels(tmp_path, vehicle) == {"year": "2025"}


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("&lt;b&gt;Hi!&lt;/b&gt;&lt;br/&gt;5 &amp;lt; 6", "Hi!\n5 < 6"),
        ("<b>Bold</b> and <br> broken", "Bold and\nbroken"),
        ("A & B, AT&T &amp; R&D", "A & B, AT&T & R&D"),
        ("under < $425, <3 it", "under < $425, <3 it"),
        ("<![CDATA[36 mo / 12k, < $425 <i>please</i>]]>", "36 mo / 12k, < $425 please"),
        ("caf&#233; &copyleft; &unknown;", "café &copyleft; &unknown;"),
        ("<p class='x'>one</p><p>two</p>", "one\ntwo"),
    ],
)
def test_adf_markup_is_removed_from_comments_and_their_text_kept(tmp_path: Path, raw: str, text: str) -> None:
    document = read_text(tmp_path, lead("", f"<comments>{raw}</comments>"))
    assert document.records[0].values["customer_message"] == text


def test_adf_comments_of_vehicle_and_customer_are_joined(tmp_path: Path) -> None:
    document = read_text(tmp_path, lead("<comments>one</comments>", "<comments>two</comments>"))
    assert document.records[0].values["customer_message"] == "one\ntwo"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_adf_line_is_where_the_prospect_begins(tmp_path: Path, end: str) -> None:
    text = lead() + "<!-- <prospect> -->\n" + lead().replace("<prospect>", '<prospect\n status="new">')
    document = read_text(tmp_path, text.replace("\n", end))
    assert [(record.line, record.record) for record in document.records] == [(3, 0), (11, 1)]


def test_adf_dialects_are_tolerated(tmp_path: Path) -> None:
    text = (
        '\n<?ADF VERSION="1.0"?>\n<?xml version="1.0" encoding="UTF-8"?>\n<ADF><prospect status=new>'
        "<vehicle interest=“lease” status='used'><make>Land Rover & Co</make><extra:note>x</extra:note></vehicle>"
        "<customer><comments>José?</comments></customer></prospect></ADF>" + lead()
    )
    document = read_text(tmp_path, text, "cp1252")
    assert document.encoding == "windows-1252"
    assert [record.values["customer_message"] for record in document.records] == ["José?", "Still there?"]
    assert document.records[0].values["financing"] == "lease"
    assert document.records[0].values["condition"] == "used"
    assert document.records[0].values["make"] == "Land Rover & Co"


def test_adf_comment_of_open_html_comments_takes_linear_time(tmp_path: Path) -> None:
    started = time.perf_counter()
    document = read_text(tmp_path, lead(customer=f"<comments>{'&lt;!--' * 20_000}</comments>"))
    assert len(document.records) == 1
    assert time.perf_counter() - started < 3


def test_adf_unreadable_date_is_a_warning(tmp_path: Path) -> None:
    text = lead().replace("<vehicle>", "<requestdate>03/08/2025 4:15 PM</requestdate><vehicle>")
    problem = read_text(tmp_path, text).records[0].problems[0]
    assert (problem.rule, problem.column, problem.is_warning) == ("type", "occurred_at", True)
    text = lead().replace("<vehicle>", "<requestdate>2025-03-04T09:12:00-05:00</requestdate><vehicle>")
    assert read_text(tmp_path, text).records[0].values["occurred_at"] == "2025-03-04"


BOMB = '<!DOCTYPE adf [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>' + lead(customer="<comments>&b;</comments>")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (BOMB, 1),
        ('<!DOCTYPE adf SYSTEM "file:///etc/passwd">\n' + lead(), 1),
        ("\n<!ENTITY x SYSTEM 'file:///etc/passwd'>\n" + lead(), 2),
        (lead('<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="file:///etc/passwd"/>'), 4),
        (lead('<include xmlns="http://www.w3.org/2001/XInclude" href="/etc/passwd"/>'), 4),
        ("<leads>\n</leads>", 1),
        (lead()[:-40], 5),
        (lead().replace("</adf>", ""), 7),
        (lead().replace("</prospect>", "</vehicle>"), 6),
        (lead("<a>" * 70 + "</a>" * 70), 4),
        (lead() + "\ntrailing", 9),
    ],
)
def test_adf_that_is_dangerous_or_cut_off_is_malformed(tmp_path: Path, text: str, line: int) -> None:
    document = read_text(tmp_path, text)
    assert document.records == ()
    assert [(p.rule, p.line) for p in document.problems_of_file] == [("malformed", line)]


def test_adf_lead_with_undecodable_bytes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(lead(customer="<comments>é</comments>").encode() + lead().encode().replace(b"Still", b"\xff\0"))
    document = read(path, "automotive-crm")
    assert [[p.rule for p in record.problems] for record in document.records] == [[], ["encoding"]]


@pytest.mark.parametrize("text", ["", "<adf></adf>"])
def test_adf_without_leads_is_empty(tmp_path: Path, text: str) -> None:
    assert [p.rule for p in read_text(tmp_path, text).problems_of_file] == ["empty"]


@pytest.mark.parametrize("text", ['{"records": []}', "Id,Description\n1,Hello\n"])
def test_adf_is_the_only_crm_format_so_far(tmp_path: Path, text: str) -> None:
    with pytest.raises(WrongKindError, match="ADF 1.0 XML"):
        read_text(tmp_path, text)


@pytest.mark.parametrize(
    ("words", "label"),
    [
        ("ASAP", "immediate"), ("As soon as possible", "immediate"), ("tomorrow", "within_7d"), ("This weekend", "within_7d"),
        ("within 7 days", "within_7d"), ("2 weeks", "within_30d"), ("30 days", "within_30d"), ("one month", "within_30d"),
        ("1-3 months", "within_90d"), ("3+ months", "over_90d"), ("over 90 days", "over_90d"), ("six months", "over_90d"),
        ("in spring", None), ("", None),
    ],
)  # fmt: skip
def test_adf_timeframe_follows_the_label_rules(words: str, label: str | None) -> None:
    assert adf_words.timeline(words) == label


@pytest.mark.parametrize(
    ("words", "body"),
    [
        ("4D Sport Utility", "suv"),
        ("Crew Cab Pickup", "truck"),
        ("Minivan", "van"),
        ("4dr Sedan", "sedan"),
        ("SUV or sedan", None),
        ("boat", None),
    ],
)
def test_adf_body_style_follows_the_words(words: str, body: str | None) -> None:
    assert adf_words.vehicle_type(words) == body
