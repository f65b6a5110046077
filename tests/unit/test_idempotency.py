"""A request that is sent again under its key gets its answer, and does nothing anew."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from neuroweaver import idempotency, processes
from neuroweaver.errors import ConflictError, UsageError
from neuroweaver.idempotency import IdempotencyKeys
from neuroweaver.store import Store

GONE = f"{processes.this_process().rpartition(':')[0]}:0"


@pytest.fixture
def keys(opened: Store) -> IdempotencyKeys:
    return IdempotencyKeys(opened)


def test_the_answer_is_kept_for_the_same_user_action_and_key(keys: IdempotencyKeys, store_url: str) -> None:
    first = keys.claim("ada", "upload", "k", digest="d", subject="job_1")
    assert (first.subject, first.answer) == ("job_1", None)
    keys.answered(first, {"success": True})

    again = IdempotencyKeys(Store(store_url)).claim("ada", "upload", "k", digest="d", subject="job_2")

    assert (again.subject, again.answer) == ("job_1", {"success": True})
    assert keys.claim("bo", "upload", "k", digest="d").answer is None
    assert keys.claim("ada", "start", "k", digest="d").answer is None


def test_another_request_under_the_key_is_refused(keys: IdempotencyKeys) -> None:
    keys.answered(keys.claim("ada", "upload", "k", digest="d"), {})

    with pytest.raises(UsageError, match="another request"):
        keys.claim("ada", "upload", "k", digest="e")


def test_one_that_is_not_answered_yet_is_in_the_way(keys: IdempotencyKeys) -> None:
    claim = keys.claim("ada", "upload", "k", digest="d")

    with pytest.raises(ConflictError, match="not answered yet"):
        keys.claim("ada", "upload", "k", digest="d")
    keys.give_up(claim)
    assert keys.claim("ada", "upload", "k", digest="d").answer is None


def test_a_key_whose_process_is_gone_is_taken_over_with_what_it_was_to_make(
    keys: IdempotencyKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as other:
        other.setattr(idempotency.processes, "this_process", lambda: GONE)
        keys.claim("ada", "start", "k", digest="d", subject="job_1")

    assert keys.claim("ada", "start", "k", digest="d", subject="job_2").subject == "job_1"
    with pytest.raises(ConflictError):
        keys.claim("ada", "start", "k", digest="d", subject="job_3")


def test_a_process_of_another_host_is_given_ten_minutes(keys: IdempotencyKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    with monkeypatch.context() as other:
        other.setattr(idempotency.processes, "this_process", lambda: "elsewhere:1")
        keys.claim("ada", "start", "k", digest="d", now=now)

    with pytest.raises(ConflictError):
        keys.claim("ada", "start", "k", digest="d", now=now + timedelta(minutes=9))
    assert keys.claim("ada", "start", "k", digest="d", now=now + timedelta(minutes=11)).answer is None


def test_keys_are_forgotten_after_a_day(keys: IdempotencyKeys) -> None:
    now = datetime.now(UTC)
    keys.answered(keys.claim("ada", "upload", "k", digest="d", now=now), {"n": 1})

    assert keys.claim("ada", "upload", "k", digest="d", now=now + timedelta(hours=23)).answer == {"n": 1}
    assert keys.claim("ada", "upload", "k", digest="e", now=now + timedelta(hours=25)).answer is None


def test_an_answer_is_not_given_up(keys: IdempotencyKeys) -> None:
    claim = keys.claim("ada", "upload", "k", digest="d")
    keys.answered(claim, {"n": 1})
    keys.give_up(claim)

    assert keys.claim("ada", "upload", "k", digest="d").answer == {"n": 1}
