"""Single bad rows: named, while the good ones are kept."""

from __future__ import annotations

import pytest

from tests.integration.bad_uploads.spoilt import BAD_LINES, BAD_ROWS
from tests.integration.bad_uploads.validating import GOOD, HEADER, LEADS, Call, assert_report, lead, put

pytestmark = pytest.mark.timeout(10)


@pytest.mark.parametrize("what", BAD_ROWS)
def test_a_bad_row_of_a_csv_file_is_named_and_the_good_one_kept(call: Call, what: str) -> None:
    content, rule, column = BAD_ROWS[what]

    ended = call(put("leads.csv", content), *LEADS)

    assert_report(ended, 3, rule, column, "2 read, 1 valid, 1 quarantined, 0 duplicates")
    assert ended.out.replace("\n", "").isprintable()


@pytest.mark.parametrize("what", BAD_LINES)
def test_a_bad_line_of_json_is_named_and_the_good_one_kept(call: Call, what: str) -> None:
    line, rule, column = BAD_LINES[what]

    ended = call(put("leads.jsonl", f"{lead()}\n{line}\n"), *LEADS)

    assert_report(ended, 2, rule, column, "2 read, 1 valid, 1 quarantined, 0 duplicates")
    assert ended.out.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "day", ["yesterday", "2026-02-30", "0000-00-00", "03/01/2026", "2026-13-01", "1" * 5000, "2026-01-01\0"], ids=ascii
)
def test_a_cell_that_is_no_date_is_named(call: Call, day: str) -> None:
    content = f"{HEADER},occurred_at\n{GOOD},2026-01-01\n{GOOD},{day}\n"

    assert_report(
        call(put("leads.csv", content), *LEADS), 3, "encoding" if "\0" in day else "type", "occurred_at", "1 valid"
    )
