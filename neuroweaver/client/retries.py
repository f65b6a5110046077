"""When a request is sent again: when the service says, in `Retry-After`, else after growing pauses; not for ever."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from neuroweaver.errors import UsageError


@dataclass(frozen=True)
class Retries:
    """At most `attempts` in all, and none that would begin later than `total_seconds` after the first.

    Pauses without `Retry-After` double from `first_pause_seconds` to `longest_pause_seconds`, less up to a half, by
    chance, so that clients that were refused together do not come back together.
    """

    attempts: int = 5
    total_seconds: float = 60.0
    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 15.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise UsageError(f"attempts must be 1 or more, got {self.attempts}")
        if not 0 < self.first_pause_seconds <= self.longest_pause_seconds:
            raise UsageError(
                "pauses must be more than 0 and the longest not shorter than the first, got "
                f"{self.first_pause_seconds} and {self.longest_pause_seconds} seconds"
            )

    def pause(self, failures: int, spent_seconds: float, told_seconds: float | None = None) -> float | None:
        """Seconds to wait after so many attempts have failed; None: give up. `told_seconds` is `Retry-After`."""
        if failures >= self.attempts:
            return None
        pause = self.grown(failures) if told_seconds is None else told_seconds
        return None if spent_seconds + pause > self.total_seconds else pause

    def grown(self, failures: int) -> float:
        """The pause after so many failures in a row, whatever the limits are."""
        longest = min(self.longest_pause_seconds, self.first_pause_seconds * 2 ** min(failures - 1, 30))
        return random.uniform(longest / 2, longest)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that an answer asks to wait, as a number or a date (RFC 9110, 10.2.3); None where it does not."""
    said = headers.get("retry-after", "").strip()
    if said.isascii() and said.isdecimal():
        return float(said[:9])
    try:
        moment = parsedate_to_datetime(said)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
