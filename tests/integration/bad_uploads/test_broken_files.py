"""Files that are broken as a whole, or were cut off."""

from __future__ import annotations

import pytest

from tests.integration.bad_uploads.spoilt import BROKEN_FILES
from tests.integration.bad_uploads.validating import (
    GOOD,
    HEADER,
    LEADS,
    SALES,
    Call,
    adf,
    assert_report,
    lead,
    put,
    table,
)

pytestmark = pytest.mark.timeout(10)


# files that are broken as a whole


@pytest.mark.parametrize("what", BROKEN_FILES)
def test_a_broken_file_is_refused_with_the_line_where_it_breaks(call: Call, what: str) -> None:
    content, line, part = BROKEN_FILES[what]
    path = put("leads.txt", content())
    is_xml = content()[0] == "<"

    ended = call(path, *(SALES if is_xml else LEADS))

    column = "make" if what == "a column twice" else ""
    assert_report(ended, line, "malformed", column, part, "the file could not be read")


def test_50_000_unknown_columns_are_counted_and_some_named(call: Call) -> None:
    names = ",".join(f"c{number}" for number in range(50_000))

    ended = call(put("leads.csv", f"{HEADER},{names}\n{GOOD}{',1' * 50_000}\n"), *LEADS)

    assert (ended.code, ended.err) == (0, "")
    assert "by rule: unknown_column 50000\n" in ended.out
    assert ended.out.count("\n") < 50


def test_50_000_columns_of_which_none_is_known_lack_what_is_needed(call: Call) -> None:
    names = ",".join(f"c{number}" for number in range(50_000))

    ended = call(put("leads.csv", f"{names}\n{'1' + ',1' * 49_999}\n"), *LEADS)

    assert_report(ended, 1, "missing_column", "customer_message")
    assert ended.out.count("\n") < 50


# files that were cut off


ARRAY = "[\n" + ",\n".join(lead(customer_message=f"Used SUV, {colour}") for colour in ("red", "blue", "green")) + "\n]"
JSON_LINES = "".join(lead(customer_message=f"Used SUV, {colour}") + "\n" for colour in ("red", "blue", "green"))
QUOTED = table(*(GOOD.replace("Used SUV under 30k", f'"Used ""SUV"", {colour}"') for colour in ("red", "blue")))
XML = adf()


def cuts(text: str, first: int, step: int) -> list[int]:
    """Places at which what is left does not end with a whole row."""
    places = {*range(first, len(text) - 1, step), len(text) - 2, len(text) - 3}
    return sorted(place for place in places if "\n" not in text[place - 1 : place + 1])


@pytest.mark.parametrize("place", [1, 2, *cuts(ARRAY, 3, 29), len(ARRAY) - 1])
def test_an_array_that_was_cut_off_says_so_on_its_last_line(call: Call, place: int) -> None:
    text = ARRAY[:place]

    assert_report(call(put("leads.json", text), *LEADS), 1 + text.count("\n"), "malformed", "", "the array is cut off")


@pytest.mark.parametrize("place", cuts(JSON_LINES, 1, 29))
def test_json_lines_that_were_cut_off_lack_their_last_row(call: Call, place: int) -> None:
    text = JSON_LINES[:place]

    whole = text.count("\n")

    ended = call(put("leads.jsonl", text), *LEADS)

    assert_report(ended, whole + 1, "malformed", "", f" {whole} valid, 1 quarantined")


@pytest.mark.parametrize("place", cuts(QUOTED, len(HEADER) + 2, 7))
def test_a_csv_file_that_was_cut_off_lacks_its_last_row(call: Call, place: int) -> None:
    text = QUOTED[:place]

    ended = call(put("leads.csv", text), *LEADS)

    assert (ended.code, ended.err) == (1, "")
    ((line, column, rule),) = ended.errors
    assert line == 1 + text.count("\n")
    is_last_cell = text.rpartition("\n")[2].count(",") == GOOD.count(",") + 1
    assert (column, rule) in (
        [("trade_in", "enum"), ("trade_in", "missing_value")] if is_last_cell else [("", "malformed")]
    )


@pytest.mark.parametrize("place", cuts(HEADER, 1, 13))
def test_a_csv_file_that_was_cut_off_in_its_header_is_empty(call: Call, place: int) -> None:
    assert_report(call(put("leads.csv", HEADER[:place]), *LEADS), 1, "empty")


@pytest.mark.parametrize("place", [*range(XML.index("<adf>") + 5, len(XML) - 1, 11), len(XML) - 2, len(XML) - 3])
def test_an_xml_file_that_was_cut_off_says_so_on_its_last_line(call: Call, place: int) -> None:
    text = XML[:place]

    ended = call(put("leads.xml", text), *SALES)

    assert_report(ended, text.count("\n") + (not text.endswith("\n")), "malformed", "", "is never closed")
