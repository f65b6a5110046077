from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.ingest import adf_xml, lead_words
from pipelines.ingest.adf_reader import adf_records
from pipelines.ingest.frame import CellProblem, FileProblemError, Record

SAMPLE = Path(__file__).parents[2] / "datasets" / "sales" / "leads.adf.xml"


def read_text(text: str, size: int = 2**20) -> list[Record]:
    return list(adf_records(text[start : start + size] for start in range(0, len(text), size)))


def problem_of(text: str, size: int = 2**20) -> CellProblem:
    with pytest.raises(FileProblemError) as caught:
        read_text(text, size)
    return caught.value.problem


def lead(vehicle: str = "", customer: str = "<comments>Still there?</comments>", attributes: str = "") -> str:
    return (
        f'<?adf version="1.0"?>\n<adf>\n<prospect>\n<vehicle{attributes}>{vehicle}</vehicle>\n'
        f"<customer>{customer}</customer>\n</prospect>\n</adf>\n"
    )


def labels(*args: str) -> dict[str, Any]:
    (record,) = read_text(lead(*args))
    values = dict(record.values)
    assert record.is_partial
    assert values.pop("task") == "lead-qualification"
    assert values.pop("customer_message")
    return values


def message(comments: str) -> str:
    (record,) = read_text(lead("", f"<comments>{comments}</comments>"))
    text = record.values["customer_message"]
    assert isinstance(text, str)
    return text


def test_adf_label_that_is_not_stated_is_left_out() -> None:
    assert labels() == {}
    assert labels("<year>0</year><make></make><model> </model><bodystyle/>") == {}
    assert labels("<year>N/A</year><make>Unknown</make><model>Any</model>") == {}


def test_adf_elements_become_labels() -> None:
    vehicle = """<year>2019</year><make>FORD</make><model>F-150</model><bodystyle>PICKUP</bodystyle>
      <finance><method>Finance</method><amount type="downpayment" limit="exact">4000</amount>
      <amount type="MONTHLY" limit="Maximum" currency="USD">$480</amount></finance>"""
    customer = "<timeframe>Within two weeks</timeframe><comments>Hi</comments>"
    assert labels(vehicle, customer, ' interest="BUY" status="Used"') == {
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
def test_adf_limit_says_which_end_of_the_budget(limit: str, bounds: dict[str, str]) -> None:
    vehicle = f'<finance><amount type="total" limit="{limit}">9000</amount></finance>'
    assert labels(vehicle) == {"budget_kind": "total", **bounds}


def test_adf_zero_and_foreign_amounts_are_not_stated() -> None:
    vehicle = '<finance><amount type="total">0.00</amount><amount type="monthly" currency="CAD">300</amount></finance>'
    assert labels(vehicle) == {}


def test_adf_interest_in_a_lease_is_financing_and_a_trade_in_is_a_label() -> None:
    assert labels("", "<comments>x</comments>", ' interest="lease"') == {"financing": "lease"}
    vehicle = '<make>Honda</make></vehicle><vehicle interest="trade-in"><make>Kia</make><year>2009</year>'
    assert labels(vehicle) == {"make": "Honda", "trade_in": "yes"}


def test_adf_two_models_asked_for_give_no_model() -> None:
    vehicle = "<year>2025</year><model>Jetta</model></vehicle><vehicle><year>2025</year><model>Golf</model>"
    assert labels(vehicle) == {"year": "2025"}


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("&lt;b&gt;Hi!&lt;/b&gt;&lt;br/&gt;5 &amp;lt; 6", "Hi!\n5 < 6"),
        ("<b>Bold</b> and <br> broken", "Bold and\nbroken"),
        ("A & B, AT&T &amp; R&D", "A & B, AT&T & R&D"),
        ("under < $425, <3 it", "under < $425, <3 it"),
        ("<![CDATA[36 mo / 12k, < $425 <i>please</i>]]>", "36 mo / 12k, < $425 please"),
        ("one <![CDATA[two </comments> ]]>three<![CDATA[ four]]>", "one two </comments> three four"),
        ("caf&#233; &copyleft; &unknown;", "café &copyleft; &unknown;"),
        ("<p class='x'>one</p><p>two</p>", "one\ntwo"),
        ("&lt;style&gt;p {color: red}&lt;/style&gt;Hi &lt;script&gt;go()&lt;/script&gt;you", "Hi you"),
        ("<!DOCTYPE html><html><body>Hi</body></html>", "Hi"),
        ("It said <!DOCTYPE html> and <!ENTITY x> to me", "It said <!DOCTYPE html> and <!ENTITY x> to me"),
        ("one" + "<br><p>" * 100 + "two", "one\ntwo"),
    ],
)
def test_adf_markup_is_removed_from_comments_and_their_text_kept(raw: str, text: str) -> None:
    assert message(raw) == text


def test_adf_html_in_other_free_text_breaks_nothing() -> None:
    assert labels("<pricecomments>one<br>two</pricecomments><make>Kia</make>") == {"make": "Kia"}


def test_adf_comments_of_vehicle_customer_and_prospect_are_joined() -> None:
    text = lead("<comments>one</comments>", "<comments>two</comments>")
    assert read_text(text)[0].values["customer_message"] == "one\ntwo"
    text = text.replace("</prospect>", "<comments>three</comments><comments>one</comments></prospect>")
    assert read_text(text)[0].values["customer_message"] == "one\ntwo\nthree"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 7, 2**20])
def test_adf_line_is_where_the_prospect_begins(end: str, size: int) -> None:
    text = lead() + "<!-- <prospect> -->\n" + lead().replace("<prospect>", '<prospect\n status="new">')
    records = read_text(text.replace("\n", end), size)
    assert [record.line for record in records] == [3, 11]


def test_adf_dialects_are_tolerated() -> None:
    text = (
        '\n<?ADF VERSION="1.0"?>\n<?xml version="1.0" encoding="UTF-8"?>\n<ADF><prospect status=new>'
        "<vehicle interest=“lease” STATUS='used'><make>Land Rover & Co</make><extra:note>x</extra:note></vehicle>"
        "<customer><comments>José?</comments></customer></prospect></ADF>\ufeff"
        + lead()
        + "<a:adf><a:Prospect><a:comments>Hi</a:comments></a:Prospect></a:adf>"
    )
    records = read_text(text)
    assert [record.values["customer_message"] for record in records] == ["José?", "Still there?", "Hi"]
    assert records[0].values["financing"] == "lease"
    assert records[0].values["condition"] == "used"
    assert records[0].values["make"] == "Land Rover & Co"


def test_adf_means_the_same_whether_or_not_it_has_to_be_repaired() -> None:
    """A bare & in each prospect sends all of them the other way."""
    text = SAMPLE.read_text(encoding="utf-8")
    repaired = text.replace("<prospect", "<Prospect").replace("<vendorname>", "<vendorname>A & B ")

    assert read_text(repaired) == read_text(text)


@pytest.mark.parametrize("size", [1, 3, 50, 1000])
def test_adf_means_the_same_wherever_its_pieces_end(size: int) -> None:
    text = (
        lead("<make>A & B</make>", "<comments><![CDATA[x ]] y]]> &amp; z<br></comments>").replace("\n", "\r\n") + lead()
    )

    assert read_text(text, size) == read_text(text)


def test_adf_attributes_of_a_well_formed_prospect_may_be_upper_case() -> None:
    assert labels("", "<comments>x</comments>", ' INTEREST="Lease"') == {"financing": "lease"}


def test_adf_empty_prospect_is_a_record_without_a_message() -> None:
    records = read_text("<adf><prospect/><prospect></prospect></adf>")
    assert [record.values for record in records] == [{"task": "lead-qualification"}] * 2


def test_adf_names_of_persons_are_given_and_those_of_businesses_are_not() -> None:
    customer = (
        "<contact><name part='last'>Sampleton</name><name part='first'>Renée</name><name part='middle'>Q.</name>"
        "<name type='business'>Notional Bakery</name></contact><comments>x</comments>"
    )
    text = lead("", customer).replace(
        "</prospect>",
        "<vendor><contact><name part='full'>Example Volkswagen West</name></contact></vendor>"
        "<provider><name>Portal</name><contact><name type='individual'>Otis Mockford</name></contact></provider></prospect>",
    )
    assert read_text(text)[0].names == ("Renée Q. Sampleton", "Otis Mockford")


def assert_linear(read: Callable[[int], object], size: int) -> None:
    """Four times the size takes about four times as long, where work that grows with its square takes sixteen times."""

    def seconds(size: int) -> float:
        started = time.process_time()
        read(size)
        return time.process_time() - started

    quarter = min(seconds(size // 4) for _ in range(3))
    assert min(seconds(size) for _ in range(2)) < 9 * quarter + 0.1


@pytest.mark.parametrize(
    ("comments", "size"),
    [
        (lambda n: "<a>" * n + "</b>" * n, 50_000),
        (lambda n: "&lt;!--" * n, 20_000),
        (lambda n: "&lt;script&gt;" * n, 20_000),
        (lambda n: "<![CDATA[x]]>" * n, 20_000),
        (lambda n: "<" * n, 100_000),
        (lambda n: "<a b='" * n, 20_000),
        (lambda n: "&amp" * n, 50_000),
    ],
)
def test_adf_hostile_comments_take_linear_time(comments: Callable[[int], str], size: int) -> None:
    def read(size: int) -> None:
        assert len(read_text(lead(customer=f"<comments>{comments(size)}</comments>"))) == 1

    assert_linear(read, size)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (lambda n: "<adf>" + "<prospect/>" * n + "</adf>", 50_000),
        (lambda n: "<adf>" + "<prospect></Prospect>" * n + "</adf>", 20_000),
        (lambda n: "<adf>" + "<" * n + "<prospect/></adf>", 200_000),
        (lambda n: "<adf>" + "<!-- -->" * n + "<prospect/></adf>", 50_000),
        (lambda n: "<adf><prospect><model>" + "<a b=c " * n + "</model></prospect></adf>", 50_000),
    ],
)
def test_adf_hostile_files_take_linear_time(text: Callable[[int], str], size: int) -> None:
    def read(size: int) -> None:
        assert read_text(text(size))

    assert_linear(read, size)


def test_adf_unreadable_date_is_a_warning() -> None:
    text = lead().replace("<vehicle>", "<requestdate>13/08/2025 4:15 PM</requestdate><vehicle>")
    (record,) = read_text(text)
    (problem,) = record.problems
    assert (problem.rule, problem.column, problem.is_warning) == ("type", "occurred_at", True)
    assert problem.value == "13/08/2025 4:15 PM"
    assert "occurred_at" not in record.values


@pytest.mark.parametrize("asked", ["2025-03-04T09:12:00-05:00", "03/04/2025 4:15 PM", "Tue, 4 Mar 2025 09:12:00 -0500"])
def test_adf_date_of_the_request_is_the_day_that_is_written(asked: str) -> None:
    text = lead().replace("<vehicle>", f"<requestdate>{asked}</requestdate><vehicle>")
    assert read_text(text)[0].values["occurred_at"] == "2025-03-04"


@pytest.mark.parametrize(
    ("frame", "timeline"),
    [
        ("<latestdate>2025-03-11</latestdate>", "within_7d"),
        ("<earliestdate>03/10/2025</earliestdate><latestdate>04/01/2025</latestdate>", "within_30d"),
        ("<description>in spring</description><latestdate>2025-05-01</latestdate>", "within_90d"),
        ("<description>As soon as possible</description><latestdate>2025-05-01</latestdate>", "immediate"),
        ("<earliestdate>2025-09-01</earliestdate>", "over_90d"),
        ("<earliestdate>2025-03-10</earliestdate>", None),  # not before then, but until when?
        ("<latestdate>2025-03-01</latestdate>", None),  # over before it was asked for
        ("<earliestdate>2025-04-10</earliestdate><latestdate>2025-03-10</latestdate>", None),
        ("<latestdate>soon</latestdate>", None),
    ],
)
def test_adf_dates_of_the_timeframe_count_from_the_request(frame: str, timeline: str | None) -> None:
    text = lead("", f"<timeframe>{frame}</timeframe><comments>x</comments>")
    dated = text.replace("<vehicle>", "<requestdate>2025-03-04</requestdate><vehicle>")
    assert read_text(dated)[0].values.get("timeline") == timeline
    assert read_text(text)[0].values.get("timeline") == (timeline if timeline == "immediate" else None)


BOMB = '<!DOCTYPE adf [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>' + lead(customer="<comments>&b;</comments>")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (BOMB, 1),
        ('<!DOCTYPE adf SYSTEM "file:///etc/passwd">\n' + lead(), 1),
        ("\n<!ENTITY x SYSTEM 'file:///etc/passwd'>\n" + lead(), 2),
        (lead() + '<!DOCTYPE adf SYSTEM "file:///etc/passwd">', 8),
        (lead('\n<!DOCTYPE adf SYSTEM "file:///etc/passwd">'), 5),
        (lead('<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="file:///etc/passwd"/>'), 4),
        (lead('<include xmlns="http://www.w3.org/2001/XInclude" href="/etc/passwd"/>'), 4),
        (lead(customer='<comments>\n<xi:include href="/etc/passwd"/></comments>'), 6),
        (lead(customer='<comments><include xmlns="http://www.w3.org/2001/XInclude"/></comments>'), 5),
        (lead(customer=f"<comments>{'<b>' * 70}{'</b>' * 70}</comments>"), 5),
        (lead(customer=f"<comments>{'<b>' * 100_000}{'</b>' * 100_000}</comments>"), 5),
        (lead().replace("<adf>", '<adf xmlns:xi="http://www.w3.org/2001/XInclude">'), 2),
        ("<leads>\n</leads>", 1),
        (lead()[:-40], 5),
        (lead().replace("</adf>", ""), 7),
        (lead().replace("</adf>\n", ""), 6),
        (lead().replace("</adf>\n", "").replace("\n", "\r\n"), 6),
        (lead().replace("</prospect>", "</vehicle>"), 6),
        (lead("<a>" * 70 + "</a>" * 70), 4),
        (lead() + "\ntrailing", 9),
        ("<adf>\n<!-- never ends", 2),
        ("<adf>\n<?never ends", 2),
    ],
)
@pytest.mark.parametrize("size", [1, 2**20])
def test_adf_that_is_dangerous_or_cut_off_is_malformed(text: str, line: int, size: int) -> None:
    problem = problem_of(text, size)
    assert (problem.rule, problem.line) == ("malformed", line)


def test_adf_nests_to_64_levels_and_no_deeper() -> None:
    def nested(depth: int, mark: str = "") -> str:
        return f"<adf><prospect>{mark}{'<a>' * (depth - 2)}{'</a>' * (depth - 2)}</prospect></adf>"

    assert len(read_text(nested(64)) + read_text(nested(64, "&"))) == 2
    assert {problem_of(nested(65)).rule, problem_of(nested(65, "&")).rule} == {"malformed"}

    def commented(depth: int) -> str:
        return f"<adf><prospect><comments>{'<b><br>' * (depth - 3)}{'</b>' * (depth - 3)}x</comments></prospect></adf>"

    assert read_text(commented(64))[0].values["customer_message"] == "x"
    assert problem_of(commented(65)).rule == "malformed"


def test_adf_records_before_a_broken_part_were_given() -> None:
    records = adf_records(iter([lead(), "<adf><prospect>"]))
    assert next(records).line == 3
    with pytest.raises(FileProblemError):
        next(records)


def test_adf_lead_with_undecodable_bytes_is_named() -> None:
    text = lead(customer="<comments>é</comments>") + lead().replace("Still", "\udcff\0")
    assert [[p.rule for p in record.problems] for record in read_text(text)] == [[], ["encoding"]]


@pytest.mark.parametrize("text", ["", " \n\ufeff \n", "<adf></adf>", "<adf/>", "<adf><header/></adf>"])
def test_adf_without_leads_is_empty(text: str) -> None:
    assert problem_of(text).rule == "empty"


def test_adf_holds_one_prospect_of_a_long_file() -> None:
    def pieces() -> Iterator[str]:
        yield "<adf>"
        for _ in range(30):
            yield lead(customer=f"<comments>{'x' * 2**20}</comments>").partition("<adf>")[2].replace("</adf>", "")
        yield "</adf>"

    tracemalloc.start()
    assert sum(1 for _ in adf_records(pieces())) == 30
    assert tracemalloc.get_traced_memory()[1] < 15 * 2**20
    tracemalloc.stop()


def test_adf_prospect_of_more_than_16_mib_is_malformed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adf_xml, "MAX_CHARACTERS", 2**21)

    def text(size: int) -> str:
        return lead() + lead(customer=f"<comments>{'x' * size}</comments>")

    assert len(read_text(text(2**21 - 1000))) == 2
    assert (problem_of(text(2**21)).rule, problem_of(text(2**23)).rule) == ("malformed", "malformed")
    assert problem_of(text(2**23)).line == 10
    assert problem_of(text(2**21)).line == 10


@pytest.mark.parametrize(
    ("words", "label"),
    [
        ("ASAP", "immediate"), ("As soon as possible", "immediate"), ("tomorrow", "within_7d"), ("This weekend", "within_7d"),
        ("within 7 days", "within_7d"), ("48 hours", "within_7d"), ("2 weeks", "within_30d"), ("30 days", "within_30d"),
        ("0-30 Days", "within_30d"), ("one month", "within_30d"), ("2 wks", "within_30d"), ("1-3 months", "within_90d"),
        ("3+ months", "over_90d"), ("over 90 days", "over_90d"), ("six months", "over_90d"),
        ("Not now, in 6 months", "over_90d"), ("not immediately", None), ("no rush, today or whenever", None),
        ("30+ days", None), ("more than a week", None), ("next month", None), ("in spring", None), ("", None),
    ],
)  # fmt: skip
def test_timeframe_follows_the_label_rules(words: str, label: str | None) -> None:
    assert lead_words.timeline(words) == label


@pytest.mark.parametrize(
    ("words", "body"),
    [
        ("4D Sport Utility", "suv"),
        ("Crew Cab Pickup", "truck"),
        ("Minivan", "van"),
        ("Trucks", "truck"),
        ("4dr Sedan", "sedan"),
        ("SUV or sedan", None),
        ("boat", None),
    ],
)
def test_body_style_follows_the_words(words: str, body: str | None) -> None:
    assert lead_words.vehicle_type(words) == body
