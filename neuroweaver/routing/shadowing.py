"""How a shadow does: whether its answers are those that callers got from others, and how long they take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from neuroweaver import answers
from neuroweaver.tasks import Task


@dataclass(frozen=True)
class ShadowScore:
    """Counts of copies of requests, since the service started.

    Of those that were answered, `seconds` and `given_seconds` are sums of what the shadow took, and of what the answers
    took that callers got; `compared` counts values by field, and `agreed` those that were equal.
    """

    answered: int = 0
    failed: int = 0
    dropped: int = 0
    seconds: float = 0.0
    given_seconds: float = 0.0
    compared: Mapping[str, int] = field(default_factory=dict)
    agreed: Mapping[str, int] = field(default_factory=dict)

    @property
    def agreement(self) -> float | None:
        """0..1, over all fields; None where nothing was compared."""
        total = sum(self.compared.values())
        return sum(self.agreed.values()) / total if total else None

    @property
    def agreement_by_field(self) -> dict[str, float]:
        return {name: self.agreed.get(name, 0) / count for name, count in self.compared.items()}

    def with_answer(self, seconds: float, given_seconds: float, agreeing: Mapping[str, bool]) -> ShadowScore:
        compared = {**self.compared, **{name: self.compared.get(name, 0) + 1 for name in agreeing}}
        agreed = {**self.agreed, **{name: self.agreed.get(name, 0) + 1 for name, equal in agreeing.items() if equal}}
        return replace(
            self, answered=self.answered + 1, seconds=self.seconds + seconds,
            given_seconds=self.given_seconds + given_seconds, compared=compared, agreed=agreed,
        )  # fmt: skip

    def with_failure(self) -> ShadowScore:
        return replace(self, failed=self.failed + 1)

    def with_drop(self) -> ShadowScore:
        """A copy that was not sent, or that the engine had no room for."""
        return replace(self, dropped=self.dropped + 1)


def agreeing(task: Task, given: str, aside: str) -> dict[str, bool] | None:
    """By field, whether two answers to the same prompt say the same; None where `aside` is no valid answer."""
    one, other = answers.parse(task, given), answers.parse(task, aside)
    if other is None:
        return None
    fields = [column.name for column in task.labels if not column.is_free_text]
    return {} if one is None else {name: one[name] == other[name] for name in fields}
