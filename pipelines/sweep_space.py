"""What a sweep searches: a range per key of the configuration, and the points in it that are tried."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import yaml

from neuroweaver.errors import ConfigError
from pipelines.config import FinetuneConfig, flat, number, with_values

KINDS = {
    "loguniform": "loguniform(LOW, HIGH) with 0 < LOW < HIGH",
    "uniform": "uniform(LOW, HIGH) with LOW < HIGH",
    "randint": "randint(LOW, HIGH) with whole numbers LOW < HIGH, both of them possible",
    "choice": "choice(A, B, …) with two different values or more",
}
# These change what is measured or when, not what is learnt: losses under different ones can't be compared.
_FIXED = {f"training.{name}" for name in ("max_tokens", "eval_rows", "eval_steps", "checkpoint_steps", "stream_rows")}
_FIXED |= {"lora.init_from"}
_DIGITS = 3  # of a number between the ends of a range: enough to differ, short enough to type
_POINTS_PER_TRIAL = 64  # tried to find one that is not there yet


@dataclass(frozen=True)
class Parameter:
    """A key of the configuration and the range it is searched in."""

    key: str
    kind: str
    values: tuple[Any, ...]

    def at(self, share: float) -> Any:
        """The value that lies at `share` (0 to below 1) of the range."""
        if self.kind == "choice":
            return self.values[int(share * len(self.values))]
        low, high = self.values
        if self.kind == "randint":
            return low + int(share * (high - low + 1))
        exact = low * (high / low) ** share if self.kind == "loguniform" else low + share * (high - low)
        return min(max(_rounded(exact), low), high)

    def holds(self, value: Any) -> bool:
        """Whether the range holds `value`."""
        if self.kind == "choice":
            return value in self.values
        return _is_number(value) and self.values[0] <= value <= self.values[1]

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(map(str, self.values))})"


def parse(text: str) -> Parameter:
    """The parameter of `key=kind(value, …)`. Raises ConfigError where it is not written like that, or senseless."""
    found = re.fullmatch(r"\s*([\w.]+)\s*=\s*(\w+)\((.*)\)\s*", text, re.DOTALL)
    if found is None:
        raise ConfigError(
            f"search {text!r}: write key=kind(values), such as training.learning_rate=loguniform(1e-4,1e-2)"
        )
    key, kind, inner = found.groups()
    try:
        values = yaml.safe_load(f"[{inner}]")
    except yaml.YAMLError:
        raise ConfigError(f"search {text!r}: {inner!r} are no values") from None
    return made(key, kind, values)


def made(key: str, kind: str, values: Sequence[Any]) -> Parameter:
    """The parameter, checked by itself. Raises ConfigError."""
    where = f"search of {key}"
    if kind not in KINDS:
        raise ConfigError(f"{where}: unknown kind {kind!r} (allowed: {', '.join(KINDS)})")
    numbers = tuple(number(value) for value in values)
    if kind == "choice":
        sensible = len(numbers) > 1 and all(value not in numbers[:index] for index, value in enumerate(numbers))
    else:
        sensible = len(numbers) == 2 and all(map(_is_number, numbers)) and numbers[0] < numbers[1]
        sensible = sensible and not (kind == "loguniform" and numbers[0] <= 0)
        sensible = sensible and not (kind == "randint" and any(value != int(value) for value in numbers))
    if not sensible:
        raise ConfigError(f"{where}: write {KINDS[kind]}, got {kind}({', '.join(map(str, values))})")
    return Parameter(key, kind, tuple(map(int, numbers)) if kind == "randint" else numbers)


def space_of(config: FinetuneConfig, searches: Sequence[str]) -> tuple[Parameter, ...]:
    """What `searches` say over what the config's `sweep` section says; what is worth trying where neither says any.

    Raises ConfigError with every problem: keys that can't be searched, ranges that no fine-tune may have.
    """
    problems: list[str] = []
    found: dict[str, Parameter] = {}
    makers: list[Callable[[], Parameter]] = []
    for key, kinds in config.sweep.parameters.items():
        if len(kinds) != 1:
            problems.append(f"search of {key}: one kind, got {', '.join(kinds) or 'none'}")
        makers += [partial(made, key, kind, values) for kind, values in kinds.items()]
    makers += [partial(parse, text) for text in searches]
    for make in makers:
        try:
            parameter = make()
        except ConfigError as error:
            problems.append(str(error))
        else:
            found[parameter.key] = parameter
    searchable = _searchable(config)
    for key, parameter in found.items():
        if key not in searchable:
            near = difflib.get_close_matches(key, searchable, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(searchable)}"
            why = "can't be searched" if key in flat(config) else "unknown key"
            problems.append(f"search of {key}: {why} ({hint})")
            continue
        problems += _refused(config, [{key: value} for value in parameter.values])
    if problems:
        raise ConfigError("; ".join(problems))
    return tuple(found.values()) or default_space(config)


def default_space(config: FinetuneConfig) -> tuple[Parameter, ...]:
    """Around what the config has: what decides most in short fine-tunes."""
    rate, rank, beta2 = config.training.learning_rate, config.lora.rank, config.training.adam_beta2
    ranks = sorted({max(1, rank // 2), rank, min(512, rank * 2)})
    return (
        Parameter("training.learning_rate", "loguniform", (_rounded(rate / 5), _rounded(rate * 5))),
        Parameter("lora.rank", "choice", tuple(ranks)),
        Parameter("training.adam_beta2", "choice", tuple(sorted({0.95, 0.99, 0.999, beta2}))),
    )


def points(config: FinetuneConfig, space: Sequence[Parameter], count: int) -> list[dict[str, Any]]:
    """At most `count` different points, evenly spread (a scrambled Halton sequence, seeded by the config's seed).

    More points begin with the same ones. The first is the config as it stands, where that lies in the space. There are
    fewer where the space has no more. Raises ConfigError with every point that no fine-tune may have.
    """
    found: list[dict[str, Any]] = []
    as_it_stands = {parameter.key: flat(config)[parameter.key] for parameter in space}
    if all(parameter.holds(as_it_stands[parameter.key]) for parameter in space):
        found.append(as_it_stands)
    for point in _spread(space, config.seed, count * _POINTS_PER_TRIAL):
        if len(found) == count:
            break
        if point not in found:
            found.append(point)
    if problems := _refused(config, found):
        raise ConfigError("; ".join(problems))
    return found[:count]


def _spread(space: Sequence[Parameter], seed: int, count: int) -> Iterator[dict[str, Any]]:
    from scipy.stats import qmc

    sequence = qmc.Halton(len(space), scramble=True, rng=seed)
    for _ in range(count):
        (shares,) = sequence.random(1)
        yield {parameter.key: parameter.at(float(share)) for parameter, share in zip(space, shares, strict=True)}


def _searchable(config: FinetuneConfig) -> list[str]:
    return [
        key for key in flat(config) if key == "seed" or (key.startswith(("lora.", "training.")) and key not in _FIXED)
    ]


def _refused(config: FinetuneConfig, changes: Sequence[Mapping[str, Any]]) -> list[str]:
    """What no fine-tune may have, said once of each key."""
    problems: dict[str, str] = {}
    for change in changes:
        try:
            with_values(config, change)
        except ConfigError as error:
            for line in str(error).split("; "):
                problems.setdefault(line.partition(": ")[0], f"search of {line}")
    return list(problems.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
