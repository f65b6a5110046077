"""The limit on what is under way, and the queue before it."""

from __future__ import annotations

import asyncio

import pytest

from serving.limiter import Limiter, LimitReachedError


def test_no_more_than_the_limit_run_and_as_many_wait_in_their_order() -> None:
    async def run() -> None:
        limiter, order = Limiter(2), []

        async def take(name: int) -> None:
            await limiter.acquire(60)
            order.append(name)

        taking = [asyncio.create_task(take(name)) for name in range(4)]
        await asyncio.sleep(0)
        assert (order, limiter.in_flight, limiter.waiting) == ([0, 1], 2, 2)
        with pytest.raises(LimitReachedError, match="2 may run at once") as refused:
            await limiter.acquire(60, retry_after_seconds=7)
        assert refused.value.retry_after_seconds == 7
        limiter.release()
        limiter.release()
        await asyncio.gather(*taking)
        assert (order, limiter.in_flight, limiter.waiting) == ([0, 1, 2, 3], 2, 0)

    asyncio.run(run())


def test_who_waits_too_long_is_refused_and_leaves_the_queue() -> None:
    async def run() -> None:
        limiter = Limiter(1)
        await limiter.acquire(60)
        with pytest.raises(LimitReachedError, match=r"no place within 0.01 seconds"):
            await limiter.acquire(0.01)
        assert (limiter.in_flight, limiter.waiting) == (1, 0)
        limiter.release()
        await limiter.acquire(0.01)

    asyncio.run(run())


@pytest.mark.parametrize("place_came_first", [False, True])
def test_a_caller_that_goes_away_leaves_its_place_to_the_next(place_came_first: bool) -> None:
    async def run() -> None:
        limiter = Limiter(2)
        await limiter.acquire(60)
        await limiter.acquire(60)
        gone, waiting = (asyncio.create_task(limiter.acquire(60)) for _ in range(2))
        await asyncio.sleep(0)
        if place_came_first:
            limiter.release()
            gone.cancel()
        else:
            gone.cancel()
            limiter.release()
        await asyncio.wait((gone, waiting))
        assert (gone.cancelled(), waiting.exception()) == (True, None)
        assert (limiter.in_flight, limiter.waiting) == (2, 0)

    asyncio.run(run())


def test_a_changed_limit_lets_the_next_in_or_nobody_until_it_fits() -> None:
    async def run() -> None:
        limiter = Limiter(1)
        await limiter.acquire(60)
        second = asyncio.create_task(limiter.acquire(60))
        await asyncio.sleep(0)
        limiter.change(2)
        await second
        limiter.change(1)
        third = asyncio.create_task(limiter.acquire(60))
        await asyncio.sleep(0)
        limiter.release()
        await asyncio.sleep(0)
        assert (limiter.in_flight, third.done()) == (1, False)
        limiter.release()
        await third

    asyncio.run(run())


def test_it_has_drained_when_nothing_runs_and_nothing_waits() -> None:
    async def run() -> None:
        limiter = Limiter(1)
        await limiter.drained()
        await limiter.acquire(60)
        waiting = asyncio.create_task(limiter.acquire(60))
        drained = asyncio.create_task(limiter.drained())
        await asyncio.sleep(0)
        limiter.release()
        await waiting
        await asyncio.sleep(0)
        assert not drained.done()
        limiter.release()
        await drained

    asyncio.run(run())


def test_a_place_that_is_not_free_at_once_is_not_taken() -> None:
    async def run() -> None:
        limiter = Limiter(1)
        assert limiter.take()
        assert not limiter.take()
        waiting = asyncio.create_task(limiter.acquire(60))
        await asyncio.sleep(0)
        limiter.release()
        assert not limiter.take(), "it is the one's who waits"
        await waiting
        limiter.release()
        assert (limiter.take(), limiter.in_flight) == (True, 1)

    asyncio.run(run())
