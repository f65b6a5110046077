"""What a health check says: from the requests of the window, and from nothing else."""

from __future__ import annotations

import pytest

from neuroweaver.routing.vitals import vitals
from neuroweaver.routing.window import KEPT_REQUESTS, KEPT_SECONDS, Observation, Window


def window(*observations: Observation) -> Window:
    found = Window()
    for each in observations:
        found = found.having(each)
    return found


def test_vitals_are_those_of_the_window() -> None:
    seen = window(
        Observation(110.0, True, 0.2), Observation(111.0, True, 0.4), Observation(112.0, False, 9.0), Observation(113.0, True, 0.6)
    )  # fmt: skip

    found = vitals(seen, now=120.0, since=100.0)

    assert found.to_wire() == {"responseTime": 400.0, "errorRate": 0.25, "throughput": 0.2}


def test_what_was_not_asked_yet_has_no_time_no_errors_and_no_throughput() -> None:
    assert vitals(Window(), now=5.0, since=0.0).to_wire() == {"responseTime": 0.0, "errorRate": 0.0, "throughput": 0.0}


def test_old_requests_do_not_count_and_the_window_is_no_longer_than_it_keeps() -> None:
    seen = window(Observation(0.0, False, 1.0), Observation(200.0, True, 1.0), Observation(280.0, True, 2.0))

    found = vitals(seen, now=KEPT_SECONDS + 1, since=-1000.0)

    assert (found.error_rate, found.response_seconds) == (0.0, 1.5)
    assert found.requests_per_second == pytest.approx(2 / KEPT_SECONDS)


def test_a_full_window_reaches_back_to_its_first_request_alone() -> None:
    seen = window(*(Observation(index / 10, True, 0.01) for index in range(1000)))

    found = vitals(seen, now=100.0, since=0.0)

    assert len(seen.observations) == KEPT_REQUESTS
    assert found.requests_per_second == pytest.approx(10, rel=0.01)


def test_a_rate_over_a_moment_is_not_blown_up() -> None:
    assert vitals(window(Observation(1.0, True, 0.1)), now=1.001, since=1.0).requests_per_second == 1.0
