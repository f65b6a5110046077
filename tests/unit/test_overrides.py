"""Overrides in the store: for whom they hold, how long, and what is kept of them."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from neuroweaver.errors import ConflictError, NotFoundError, UsageError
from neuroweaver.overrides import SESSION, WORKFLOW, Asker, OverrideRecord, Overrides, keys_of
from neuroweaver.routing.candidates import Duration
from neuroweaver.store import Store, timestamp

NOW = datetime(2026, 3, 1, 9, tzinfo=UTC)
ADA = Asker("ada", "session 1", NOW + SESSION, "wf-1")
SALES = "automotive-sales"


@pytest.fixture
def overrides(opened: Store) -> Overrides:
    return Overrides(opened)


def put(overrides: Overrides, asker: Asker, duration: Duration, version: int = 2, at: datetime = NOW) -> OverrideRecord:
    return overrides.set(asker, duration, f"{SALES}@{version}", SALES, "we compare", at)


def holding(overrides: Overrides, asker: Asker, model_type: str = SALES, at: datetime = NOW) -> OverrideRecord | None:
    found = {each.key: each for each in overrides.holding(at)}
    return next((found[key] for key in keys_of(asker, model_type) if key in found), None)


@pytest.mark.parametrize(
    ("duration", "others"),
    [
        ("session", [replace(ADA, user="bo"), replace(ADA, session="session 2")]),
        ("workflow", [replace(ADA, user="bo"), replace(ADA, workflow_id="wf-2"), replace(ADA, workflow_id=None)]),
        ("permanent", [replace(ADA, user="bo")]),
    ],
)
def test_an_override_is_for_whoever_set_it_within_its_scope(
    overrides: Overrides, duration: Duration, others: list[Asker]
) -> None:
    record = put(overrides, ADA, duration)

    assert holding(overrides, ADA) == record
    assert holding(overrides, ADA, "parts-specialist") is None
    assert [holding(overrides, other) for other in others] == [None] * len(others)


def test_the_same_scope_in_another_word_is_another_scope(overrides: Overrides) -> None:
    put(overrides, replace(ADA, session="x"), "session")

    assert holding(overrides, replace(ADA, session="y", workflow_id="x")) is None


@pytest.mark.parametrize(
    ("duration", "lasts"), [("session", SESSION), ("workflow", WORKFLOW), ("permanent", timedelta(days=4000))]
)
def test_an_override_holds_to_its_end(overrides: Overrides, duration: Duration, lasts: timedelta) -> None:
    record = put(overrides, ADA, duration)

    assert holding(overrides, ADA, at=NOW + lasts - timedelta(seconds=1)) == record
    after = holding(overrides, ADA, at=NOW + lasts)
    assert after == (record if duration == "permanent" else None)
    assert record.holds_at(timestamp(NOW + lasts)) is (duration == "permanent")


def test_of_several_the_narrowest_counts(overrides: Overrides) -> None:
    permanent = put(overrides, ADA, "permanent")
    assert holding(overrides, ADA) == permanent
    session = put(overrides, ADA, "session")
    assert holding(overrides, ADA) == session
    workflow = put(overrides, ADA, "workflow")
    assert holding(overrides, ADA) == workflow
    assert holding(overrides, replace(ADA, workflow_id="wf-2")) == session
    assert holding(overrides, replace(ADA, workflow_id=None, session="2")) == permanent


def test_a_new_one_ends_the_one_before_it(overrides: Overrides) -> None:
    first, later = put(overrides, ADA, "session"), NOW + timedelta(hours=1)
    second = put(overrides, ADA, "session", 3, later)

    assert overrides.page("ada", ended=False, limit=9, now=later) == ([second], 1)
    assert overrides.page("ada", ended=True, limit=9, now=later) == ([replace(first, ended_at=timestamp(later))], 1)
    put(overrides, ADA, "session", 2, NOW + 2 * SESSION)
    ended, _ = overrides.page("ada", ended=True, limit=9, now=NOW + 2 * SESSION)
    assert ended[1].ended_at == second.ends_at, "it had ended by itself"


def test_who_ends_an_override_sees_it_or_there_is_none(overrides: Overrides) -> None:
    mine, other = put(overrides, ADA, "permanent"), put(overrides, replace(ADA, user="bo"), "permanent")

    for missing in (other.id, "ovr_none"):
        with pytest.raises(NotFoundError, match=f"^no override '{missing}'$"):
            overrides.end(missing, "ada")
    ended = overrides.end(mine.id, "ada", NOW)
    assert ended == replace(mine, ended_at=timestamp(NOW))
    with pytest.raises(ConflictError, match=f"{mine.id} has ended at 2026-03-01T09:00:00.000000Z"):
        overrides.end(mine.id, "ada", NOW)
    assert overrides.end(other.id, None, NOW).user == "bo"
    assert overrides.holding(NOW) == []


def test_one_that_ended_by_itself_can_t_be_ended(overrides: Overrides) -> None:
    record = put(overrides, ADA, "session")

    with pytest.raises(ConflictError, match=str(record.ends_at)):
        overrides.end(record.id, "ada", NOW + SESSION)


def test_a_workflow_s_override_needs_a_workflow(overrides: Overrides) -> None:
    with pytest.raises(UsageError, match="X-Workflow-Id"):
        put(overrides, replace(ADA, workflow_id=None), "workflow")


def test_no_session_no_workflow_and_no_personal_data_is_stored_as_it_is(overrides: Overrides) -> None:
    asker = replace(ADA, session="secret-session", workflow_id="555-867-5309")
    for duration in ("session", "workflow", "permanent"):
        overrides.set(asker, duration, f"{SALES}@2", SALES, "ada@canary.example asked, 555-867-5309", NOW)  # type: ignore[arg-type]

    stored = str([vars(each) for each in overrides.holding(NOW)])

    assert not any(word in stored for word in ("secret-session", "867-5309", "canary"))
    assert stored.count("[EMAIL]") == 3
    found = holding(overrides, asker)
    assert found is not None
    assert (found.duration, found.workflow_id) == ("workflow", "[PHONE]")


def test_pages_are_of_one_user_or_of_all(overrides: Overrides) -> None:
    records = [
        put(overrides, replace(ADA, user=name, session=str(number)), "session", at=NOW + timedelta(seconds=number))
        for number, name in enumerate(["ada", "bo", "ada", "ada"])
    ]
    at = NOW + timedelta(minutes=1)

    assert overrides.page("ada", ended=False, limit=2, now=at) == ([records[0], records[2]], 3)
    assert overrides.page("ada", ended=False, limit=2, offset=2, now=at) == ([records[3]], 3)
    assert overrides.page(None, ended=False, limit=9, now=at) == (records, 4)
    assert overrides.page("eve", ended=False, limit=9, now=at) == ([], 0)


def test_of_many_that_are_set_at_once_one_holds(overrides: Overrides) -> None:
    def set_one(number: int) -> str:
        try:
            return put(overrides, ADA, "permanent", number, datetime.now(UTC)).model_id
        except ConflictError:
            return "conflict"

    with ThreadPoolExecutor(8) as threads:
        found = Counter(threads.map(set_one, range(24)))

    (held,) = overrides.holding()
    assert found[held.model_id] == 1
    assert found.total() == 24
