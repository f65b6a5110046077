"""Rate limits: how many requests a user may send, evenly refilled."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MAX_USERS = 10_000


@dataclass
class _Bucket:
    left: float
    at: float


class RateLimits:
    """`per_minute` requests of a user at once, and as many again over each minute. Counted in this process."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, user_id: str) -> float:
        """0 where the user may send a request now, which is counted, or else the seconds to wait."""
        now = self._clock()
        bucket = self._buckets.setdefault(user_id, _Bucket(self._per_minute, now))
        self._buckets.move_to_end(user_id)
        if len(self._buckets) > MAX_USERS:
            self._buckets.popitem(last=False)
        bucket.left = min(bucket.left + (now - bucket.at) * self._per_minute / 60, self._per_minute)
        bucket.at = now
        if bucket.left < 1:
            return (1 - bucket.left) * 60 / self._per_minute
        bucket.left -= 1
        return 0.0
