from __future__ import annotations

from datetime import date

import pytest

from pipelines.ingest.crm_dates import read_day, stated_day

MARCH_8 = [
    "2025-03-08", "2025-03-08T16:15:00", "2025-03-08T16:15:00Z", "2025-03-08T16:15:00.0000000-05:00",
    "2025-03-08T16:15:00.000+0000", "2025-03-08 16:15", "2025-03-08 16:15:00 EST", "2025-03-08T16:15:00 -0500",
    "20250308", "20250308T161500Z", "202503081615", "20250308161500", "2025-3-8", "2025/03/08 4:15 PM", "2025.03.08",
    "03/08/2025 4:15 PM", "3/8/2025 16:15:00", "3/8/2025 4:15p", "03/08/2025, 4:15:00 PM", "3/8/25", "3/8/25 4:15 a.m.",
    "03-08-2025", "Sat, 08 Mar 2025 16:15:00 -0500", "Sat, 8 Mar 2025 16:15:00 GMT", "8 Mar 2025", "8 March 2025",
    "08-Mar-2025", "8-mar-25", "Mar 8, 2025", "Mar. 8th, 2025 at 4:15 PM", "March 8 2025 4:15 PM", "MARCH 8, 2025",
    "Saturday, March 8, 2025 4:15:00 PM", "Sat Mar  8 16:15:00 2025", "Sat Mar 8 16:15:00 EST 2025",
    "Sat Mar 08 2025 16:15:00 GMT-0500 (Eastern Standard Time)", "1741450500000", "  2025-03-08\n",
]  # fmt: skip


@pytest.mark.parametrize("text", MARCH_8)
def test_date_is_read_in_every_way_that_feeds_write_it(text: str) -> None:
    assert read_day(text) == date(2025, 3, 8)


@pytest.mark.parametrize(
    "text",
    [
        "13/03/2025", "2/30/2025", "2025-13-01", "20250230", "0/8/2025", "08.03.2025", "03-08-25", "25-03-08",
        "March 2025", "3/2025", "2025", "202503", "next week", "8/3", "Mar 8", "3/8/20251", "03/08/2025 garbage",
        "2025-03-08Tgarbage", "1741450500", "5555550100", "03082025", "0001-01-01T00:00:00", "1900-01-01", "1/1/1970",
        "3/8/2125", "٣/٨/٢٠٢٥", "x" * 100_000, " " * 100_000 + "2025-03-08", "",
    ],
)  # fmt: skip
def test_date_that_may_mean_another_day_or_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_day(text)


def test_numbers_are_read_day_first_only_where_that_is_said() -> None:
    assert read_day("04/03/2025") == date(2025, 4, 3)
    assert read_day("04/03/2025 16:15", day_first=True) == date(2025, 3, 4)
    assert read_day("4.3.25".replace(".", "/"), day_first=True) == date(2025, 3, 4)
    assert read_day("04.03.2025", day_first=True) == date(2025, 3, 4)
    assert read_day("2025-03-04", day_first=True) == date(2025, 3, 4)
    with pytest.raises(ValueError, match="no month 13"):
        read_day("04/13/2025", day_first=True)


def test_formats_that_are_given_are_the_only_ones() -> None:
    assert read_day("03082025", formats=["%d.%m.%Y", "%m%d%Y"]) == date(2025, 3, 8)
    with pytest.raises(ValueError, match="no way that is known"):
        read_day("2025-03-08", formats=["%m%d%Y"])


def test_year_of_two_digits_is_the_nearest_that_a_request_can_have() -> None:
    assert read_day("3/8/99") == date(1999, 3, 8)
    assert read_day(f"3/8/{(date.today().year + 1) % 100:02d}").year == date.today().year + 1


def test_stated_day_is_a_warning_where_it_is_not_understood_and_nothing_where_it_is_empty() -> None:
    assert stated_day("") == stated_day(None) == stated_day(" \n") == (None, None)
    assert stated_day("2025-03-08") == stated_day(1741450500000) == (date(2025, 3, 8), None)
    for raw in ("soon", True, 20250308, 3.5, {"day": 1}, [2025], 10**40):
        day, problem = stated_day(raw)
        assert day is None
        assert problem is not None
        assert (problem.rule, problem.column, problem.value, problem.is_warning) == ("type", "occurred_at", raw, True)
