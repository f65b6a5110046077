"""The report of a dataset as one HTML page: no script, nothing from outside, the same bytes for the same facts.

Figures are worked out here; words and looks are in `templates/dataset_report.html.j2`, which escapes all it is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from fractions import Fraction
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from neuroweaver.report import LISTED, Finding, TokenCounts, ValidationReport
from neuroweaver.tasks import TASKS

SHOWN_PROBLEMS = 200
RARE = 5  # a label with fewer rows is hardly learnt
SHOWN_VALUES = 12  # of a field whose values are not a fixed list
SIDES = ("train", "validation", "held_out", "all")

_BARS = 32
_WARNINGS_ONLY = frozenset({"duplicate", "pii", "unknown_column"})
_EITHER = frozenset({"type", "vin_checksum"})  # rows of the same rule may be the one or the other
# What HTML can't hold, UTF-8 can't write, or would turn the text around it into another one.
_REPLACED = (
    *(code for code in range(32) if chr(code) not in "\t\n\r"),
    *range(0x7F, 0xA0),
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
    *range(0xD800, 0xE000),
)


@dataclass(frozen=True)
class Sample:
    """One row to look at, without personal data. `absent` are labels that it does not state."""

    task: str
    line: int
    side: str
    values: dict[str, Any]
    absent: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """What a page tells.

    `source`: `file`, `dealership`, `department`, `date_range`, `mapping`, `created_at` (RFC 3339), `version`; further
    keys are shown after these. `sides`: rows by side, empty for a file that is not split. `balance`: label field ->
    value -> side (`all` where not split) -> rows. `lengths`: tokens of rows, or of a sample of them.
    `max_quarantined`: the share of rows that may be quarantined, where the page is to say it.
    """

    report: ValidationReport
    source: Mapping[str, str | None]
    sides: Mapping[str, int]
    balance: Mapping[str, Mapping[str, Mapping[str, int]]]
    lengths: Sequence[int]
    token_limit: int | None
    samples: Sequence[Sample]
    max_quarantined: float | None = None


def render(page: Page) -> str:
    """The page as HTML. Every value of `page` is text on it, whatever it holds."""
    report = page.report
    problems = [*((entry, False) for entry in report.errors), *((entry, True) for entry in report.warnings)]
    html = _template().render(
        page=page,
        report=report,
        verdict=verdict_of(report),
        to_fix=_to_fix(page),
        sides={name: page.sides[name] for name in _ordered(page.sides)},
        rules=rules_of(report),
        problems=problems[:SHOWN_PROBLEMS],
        more_problems=max(sum(report.by_rule.values()), len(problems)) - len(problems[:SHOWN_PROBLEMS]),
        unknown_columns=[entry for entry in report.warnings if entry.rule == "unknown_column"],
        fields=fields_of(page),
        chart=chart_of(page.lengths, report.tokens, page.token_limit),
        tasks=TASKS,
        listed=LISTED,
        rare=RARE,
    )
    return html.translate(dict.fromkeys(_REPLACED, 0xFFFD))


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("pipelines"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {use.__name__: use for use in (number, share, moment, lower_first, segments)}
    return environment.get_template("dataset_report.html.j2")


def number(value: int) -> str:
    return f"{value:,}"


def share(part: int, whole: int) -> str:
    """In per cent; never 0 % of something, nor 100 % of less than all."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    if part in (0, whole) or 9.95 <= percent < 99.5:
        return f"{percent:.0f}\N{NO-BREAK SPACE}%"
    return f"{'< 0.1' if percent < 0.1 else format(min(percent, 99.9), '.1f')}\N{NO-BREAK SPACE}%"


def moment(text: str) -> str:
    """An RFC 3339 time as people write it; any other text as it is."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    is_utc = when.tzinfo is not None and not when.utcoffset()
    return f"{when:%Y-%m-%d %H:%M} UTC" if is_utc else text


def lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _ordered(sides: Iterable[str]) -> list[str]:
    return sorted(sides, key=lambda name: (SIDES.index(name) if name in SIDES else len(SIDES), name))


@dataclass(frozen=True)
class Segment:
    """A part of a bar; `x` and `width` are per cent of its length."""

    name: str
    rows: int
    x: str
    width: str


def segments(counts: Mapping[str, int], whole: int) -> list[Segment]:
    """The parts of a bar as long as `whole`; what is not nothing can be seen."""
    widths = [max(100 * rows / whole, 0.6) if rows else 0.0 for rows in counts.values()] if whole else []
    scale = min(1.0, 100 / sum(widths)) if sum(widths) else 1.0
    parts, x = [], 0.0
    for (name, rows), width in zip(counts.items(), widths, strict=False):
        if rows:
            parts.append(Segment(name, rows, f"{x:.2f}%", f"{width * scale:.2f}%"))
        x += width * scale
    return parts


def verdict_of(report: ValidationReport) -> str:
    """`valid`, or why not: `unreadable`, `columns`, `empty`, `nothing` (no row is valid), `share` (too few are)."""
    if report.valid:
        return "valid"
    if report.rows.total is None:
        return "unreadable"
    if "missing_column" in report.by_rule:
        return "columns"
    if not report.rows.total:
        return "empty"
    return "share" if report.rows.valid else "nothing"


def _to_fix(page: Page) -> int | None:
    """How many quarantined rows are too many, where the allowed share is known."""
    rows = page.report.rows
    if page.max_quarantined is None or not rows.total or rows.quarantined is None:
        return None
    return max(0, rows.quarantined - int(Fraction(str(page.max_quarantined)) * rows.total))


@dataclass(frozen=True)
class RuleCount:
    """A broken rule: how often, in which columns, and which values came again and again.

    `unlisted` are those of which a report cut at its limit no longer says whether they are errors or warnings.
    """

    name: str
    errors: int
    warnings: int
    unlisted: int
    columns: tuple[tuple[str, int], ...]
    repeats: tuple[tuple[Finding, int], ...]

    @property
    def total(self) -> int:
        return self.errors + self.warnings + self.unlisted

    @property
    def parts(self) -> dict[str, int]:
        return {"error": self.errors, "warning": self.warnings, "unlisted": self.unlisted}


def rules_of(report: ValidationReport) -> list[RuleCount]:
    """Rules by how often they are broken, errors first."""
    counted = [_rule_count(report, rule) for rule, count in report.by_rule.items() if count]
    return sorted(counted, key=lambda rule: (-rule.errors, -rule.total, rule.name))


def _rule_count(report: ValidationReport, rule: str) -> RuleCount:
    errors = [entry for entry in report.errors if entry.rule == rule]
    warnings = [entry for entry in report.warnings if entry.rule == rule]
    rest = max(0, report.by_rule[rule] - len(errors) - len(warnings))
    are_warnings = rule in _WARNINGS_ONLY or not report.errors_truncated
    are_errors = not are_warnings and (rule not in _EITHER or len(report.warnings) < LISTED)
    columns = Counter(entry.column for entry in (*errors, *warnings) if entry.column)
    first: dict[tuple[str | None, str], Finding] = {}
    repeats: Counter[tuple[str | None, str]] = Counter()
    for entry in (*errors, *warnings):
        if entry.value is not None:
            repeats[entry.column, entry.value] += 1
            first.setdefault((entry.column, entry.value), entry)
    return RuleCount(
        rule,
        len(errors) + rest * are_errors,
        len(warnings) + rest * are_warnings,
        0 if are_errors or are_warnings else rest,
        tuple(columns.most_common()),
        tuple((first[key], count) for key, count in repeats.most_common(3) if count > 1),
    )


@dataclass(frozen=True)
class LabelValue:
    """`missing` are the sides of the split on which no row has the value."""

    name: str
    sides: dict[str, int]
    missing: tuple[str, ...]

    @property
    def rows(self) -> int:
        return sum(self.sides.values())

    @property
    def is_rare(self) -> bool:
        return self.rows < RARE


@dataclass(frozen=True)
class Field:
    """A label field; `rest` are values that are not shown one by one, `never` those of its list that do not occur."""

    name: str
    sides: dict[str, int]
    values: tuple[LabelValue, ...]
    rest: tuple[LabelValue, ...]
    never: tuple[str, ...]
    is_closed: bool

    @property
    def rows(self) -> int:
        return sum(self.sides.values())

    @property
    def flagged(self) -> list[LabelValue]:
        return [value for value in self.values if self.is_closed and (value.is_rare or value.missing)]


def fields_of(page: Page) -> list[Field]:
    """The label fields in the order of the tasks; of a file that is not split, as the report counts them."""
    balance = page.balance or {
        field: {value: {"all": rows} for value, rows in counts.items()} for field, counts in page.report.labels.items()
    }
    labels = {c.name: c for task in TASKS.values() if task.model_type == page.report.model_type for c in task.labels}
    names = [*(name for name in labels if name in balance), *sorted(balance.keys() - labels.keys())]
    split = [side for side, rows in page.sides.items() if rows]
    return [_field(name, balance[name], labels[name].values if name in labels else (), split) for name in names]


def _field(name: str, counts: Mapping[str, Mapping[str, int]], known: Sequence[str], split: Sequence[str]) -> Field:
    totals: Counter[str] = Counter()
    for by_side in counts.values():
        totals.update(by_side)
    named = totals.keys() if "all" in totals else totals.keys() | set(split)
    sides = {side: totals[side] for side in _ordered(named) if totals[side] or side in split}
    values = [_label_value(value, by_side, sides) for value, by_side in counts.items() if any(by_side.values())]
    values.sort(key=lambda value: (-value.rows, value.name))
    shown = len(values) if known or len(values) <= SHOWN_VALUES + 1 else SHOWN_VALUES
    never = tuple(value for value in known if not any(counts.get(value, {}).values()))
    return Field(name, sides, tuple(values[:shown]), tuple(values[shown:]), never, bool(known))


def _label_value(name: str, by_side: Mapping[str, int], sides: Iterable[str]) -> LabelValue:
    rows = {side: by_side.get(side, 0) for side in sides}
    return LabelValue(name, rows, tuple(side for side, count in rows.items() if not count))


@dataclass(frozen=True)
class Bar:
    """Rows of `low` up to and including `high` tokens (no end where None); `x` and `height` are per cent."""

    low: int
    high: int | None
    rows: int
    x: float
    height: float


@dataclass(frozen=True)
class Chart:
    """A histogram of token lengths. `marks` are name, tokens and place in per cent; `width` is that of a bar."""

    bars: tuple[Bar, ...]
    width: float
    marks: tuple[tuple[str, int, float], ...]
    p50: int
    p95: int
    longest: int
    peak: int
    is_limit_outside: bool


def chart_of(lengths: Sequence[int], tokens: TokenCounts, limit: int | None) -> Chart | None:
    """None where no lengths are known. A long tail stands in the last bar; a limit far off is not drawn."""
    if not lengths:
        return None
    ordered = sorted(lengths)
    p50 = tokens.p50 if tokens.p50 is not None else ordered[len(ordered) // 2]
    p95 = tokens.p95 if tokens.p95 is not None else ordered[int(len(ordered) * 0.95)]
    longest = max(ordered[-1], tokens.max or 0)
    end = max(p95, ordered[0], min(ordered[-1], 3 * p95))
    is_limit_outside = limit is not None and limit > 1.5 * end
    if limit is not None and not is_limit_outside:
        end = max(end, limit)
    step = _step(end - ordered[0])
    first = ordered[0] // step
    count = end // step - first + 1
    rows = Counter(min(length // step - first, count - 1) for length in ordered)
    peak, width = max(rows.values()), 100 / count
    bars = [
        Bar((first + at) * step, (first + at + 1) * step - 1, rows[at], at * width, max(1.0, 100 * rows[at] / peak))
        for at in range(count)
    ]
    if longest > (bars[-1].high or 0):
        bars[-1] = replace(bars[-1], high=None)
    named = [("median", p50), ("p95", p95), *([("limit", limit)] if limit and not is_limit_outside else [])]
    marks = tuple((name, at, min(100.0, max(0.0, (at / step - first) * width))) for name, at in named)
    return Chart(tuple(bars), width, marks, p50, p95, longest, peak, is_limit_outside)


def _step(span: int) -> int:
    """The least of 1, 2, 5, 10, 20, 50, … of which `_BARS` are more than `span`."""
    power = 1
    while True:
        for first in (1, 2, 5):
            if first * power * _BARS > span:
                return first * power
        power *= 10
