"""The rules of routing, for any weights, times and failures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroweaver.routing.breaker import RULES, Breaker, Phase
from neuroweaver.routing.candidates import Candidate, Demand, Override
from neuroweaver.routing.decision import Decision, Health, decide
from neuroweaver.routing.performance import LEAST, adjusted
from neuroweaver.routing.prediction import Prediction
from neuroweaver.routing.sharing import choose, shares
from neuroweaver.routing.window import KEPT_REQUESTS, KEPT_SECONDS, Observation, Window

KEYS = [f"customer-{number}" for number in range(2000)]
WEIGHTS = st.dictionaries(st.text(min_size=1, max_size=8), st.floats(0.01, 1000), min_size=1, max_size=6)
EJECTED = Breaker(ejections=1, ejected_until=10.0, last_ejected_until=10.0)


def candidate(name: str, weight: float = 1.0, **values: object) -> Candidate:
    known = Candidate(name, f"{name}@1", "sales", "production", weight, ("leads",), 0.9)
    return replace(known, **values)  # type: ignore[arg-type]


def demand(key: str = "k", **values: object) -> Demand:
    return replace(Demand(key, "sales", task="leads"), **values)  # type: ignore[arg-type]


def answers(
    seconds: Sequence[float], *, at: float = 0.0, lengths: Sequence[int] | None = None, failed: int = 0
) -> Window:
    found = [
        Observation(at, True, each, length)
        for each, length in zip(seconds, lengths or [10] * len(seconds), strict=True)
    ]
    return Window((*found, *[Observation(at, False, 1.0, 10)] * failed))


def chosen(decision: Decision) -> str | None:
    return decision.chosen and decision.chosen.id


def refusals(decision: Decision) -> dict[str, tuple[str, ...]]:
    return {each.candidate.id: each.refusals for each in decision.judgements}


# shares


@pytest.mark.fault(11)
@given(WEIGHTS)
def test_shares_sum_to_one_and_keep_the_proportions(weights: dict[str, float]) -> None:
    found = shares(weights)

    assert math.isclose(math.fsum(found.values()), 1)
    for one in weights:
        for other in weights:
            assert math.isclose(found[one] * weights[other], found[other] * weights[one], rel_tol=1e-9)


@settings(max_examples=25, deadline=None)
@given(WEIGHTS)
def test_keys_are_dealt_out_by_weight(weights: dict[str, float]) -> None:
    counts = Counter(choose(key, weights) for key in KEYS)

    for name, share in shares(weights).items():
        deviation = math.sqrt(share * (1 - share) / len(KEYS))
        assert abs(counts[name] / len(KEYS) - share) <= 5 * deviation + 1 / len(KEYS)


@settings(max_examples=25, deadline=None)
@given(WEIGHTS, st.data())
def test_a_changed_weight_moves_keys_only_from_or_to_its_own(weights: dict[str, float], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(weights)))
    changed = {**weights, name: data.draw(st.floats(0.01, 1000))}
    grown = changed[name] >= weights[name]

    for key in KEYS[:500]:
        before, after = choose(key, weights), choose(key, changed)
        assert before == after or (after if grown else before) == name


@given(WEIGHTS, st.text(max_size=20), st.randoms())
def test_a_key_sticks_whatever_the_order(weights: dict[str, float], key: str, random: object) -> None:
    shuffled = list(weights.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    assert choose(key, dict(shuffled)) == choose(key, weights)


def test_nothing_is_chosen_by_no_weight() -> None:
    assert {choose(key, {"a": 0.0, "b": 1e-300}) for key in KEYS[:100]} == {"b"}
    for call in (lambda: choose("k", {"a": 0.0}), lambda: shares({"a": 0.0}), lambda: shares({})):
        with pytest.raises(ValueError, match="weight"):
            call()
    with pytest.raises(ValueError, match="0 or more, got -1"):
        candidate("a", -1.0)


# the breaker


def after(breaker: Breaker, outcomes: Sequence[bool], now: float = 0.0) -> Breaker:
    for answered in outcomes:
        breaker = breaker.noted(answered, now)
    return breaker


def test_consecutive_errors_eject_and_one_answer_between_them_does_not() -> None:
    few = [False] * (RULES.consecutive_errors - 1)

    assert after(Breaker(), [*few, True, *few]).phase(0) is Phase.CLOSED
    assert after(Breaker(), [*few, False]).phase(0) is Phase.EJECTED


def test_the_rate_of_errors_counts_from_the_minimum_volume_on_and_within_its_window() -> None:
    alternating = [True, False] * (RULES.minimum_requests // 2)

    assert after(Breaker(), alternating[:-1]).phase(0) is Phase.CLOSED
    assert after(Breaker(), alternating).phase(0) is Phase.EJECTED
    late = after(after(Breaker(), alternating[:-1]), [False], now=RULES.window_seconds + 1)
    assert late.phase(RULES.window_seconds + 1) is Phase.CLOSED


def test_ejections_grow_up_to_the_longest_and_begin_anew_after_a_calm_time() -> None:
    now, lengths = 0.0, []
    breaker = after(Breaker(), [False] * RULES.consecutive_errors, now)
    for _ in range(8):
        assert breaker.ejected_until is not None
        lengths.append(breaker.ejected_until - now)
        now = breaker.ejected_until
        breaker, probe = breaker.admitted(now)
        assert probe
        breaker = breaker.noted(False, now, probe=True)
    assert lengths == [10, 20, 40, 80, 160, 300, 300, 300]

    assert breaker.ejected_until is not None
    now = breaker.ejected_until
    closed = breaker.admitted(now)[0].noted(True, now, probe=True)
    assert closed.phase(now) is Phase.CLOSED
    soon = after(closed, [False] * RULES.consecutive_errors, now + 1)
    later = now + RULES.calm_seconds + 1
    calm = after(closed, [False] * RULES.consecutive_errors, later)
    assert soon.ejected_until == now + 1 + RULES.longest_ejection_seconds
    assert calm.ejected_until == later + RULES.first_ejection_seconds


def test_one_probe_at_a_time_decides_and_may_be_given_back() -> None:
    half_open, probe = EJECTED.admitted(10.0)

    assert EJECTED.phase(9.9) is Phase.EJECTED
    assert EJECTED.phase(10.0) is Phase.HALF_OPEN
    assert (probe, half_open.phase(10.0), half_open.admitted(10.0)[1]) == (True, Phase.PROBING, False)
    assert half_open.noted(True, 11.0) == half_open, "an older request tells nothing"
    assert half_open.abandoned().phase(10.0) is Phase.HALF_OPEN
    assert half_open.noted(True, 11.0, probe=True).phase(11.0) is Phase.CLOSED


@given(st.lists(st.tuples(st.floats(0, 60), st.booleans()), max_size=200))
def test_a_breaker_never_ejects_while_everything_is_answered_nor_for_longer_than_the_longest(
    steps: list[tuple[float, bool]],
) -> None:
    breaker, now, failed = Breaker(), 0.0, False
    for wait, answered in steps:
        now += wait
        failed = failed or not answered
        breaker, probe = breaker.admitted(now)
        breaker = breaker.noted(answered, now, probe=probe)
        assert failed or breaker.phase(now) is Phase.CLOSED
        assert breaker.ejected_until is None or breaker.ejected_until - now <= RULES.longest_ejection_seconds


# windows and predictions


@given(st.lists(st.floats(0, 500), min_size=1, max_size=300))
def test_a_window_keeps_the_newest_of_the_last_minutes(times: list[float]) -> None:
    window = Window()
    for at in sorted(times):
        window = window.having(Observation(at, True, 1.0))

    newest = sorted(at for at in times if at > max(times) - KEPT_SECONDS)[-KEPT_REQUESTS:]
    assert [each.at for each in window.observations] == newest
    assert window.recent(max(times) + KEPT_SECONDS + 1).observations == ()


def test_quantiles_and_rates_are_of_what_was_answered() -> None:
    window = answers([0.01 * n for n in range(1, 101)], failed=100)

    assert window.quantile_seconds(0.95) == pytest.approx(0.95)
    assert window.quantile_seconds(0.0) == pytest.approx(0.01)
    assert window.success_rate == 0.5
    assert (Window().quantile_seconds(0.5), Window().success_rate) == (None, 1.0)


@given(st.floats(0, 10), st.floats(0, 0.01), st.lists(st.integers(0, 8000), min_size=8, max_size=40, unique=True))
def test_a_prediction_follows_the_length_of_the_input(base: float, slope: float, lengths: list[int]) -> None:
    window = answers([base + slope * each for each in lengths], lengths=lengths)

    longer = max(lengths) + 1000
    assert Prediction(window, longer).seconds == pytest.approx(base + slope * longer, rel=1e-6, abs=1e-6)
    assert Prediction(window, 0).seconds == pytest.approx(base + slope * min(lengths), rel=1e-6, abs=1e-6)


@given(st.lists(st.tuples(st.integers(0, 8000), st.floats(0, 60)), max_size=40), st.integers(0, 8000))
def test_a_prediction_is_never_below_what_was_seen_and_unknown_only_without_answers(
    seen: list[tuple[int, float]], length: int
) -> None:
    found = Prediction(answers([each for _, each in seen], lengths=[each for each, _ in seen], failed=3), length)

    assert (found.seconds is None) == (not seen)
    assert found.seconds is None or found.seconds >= min(each for _, each in seen) * (1 - 1e-9)


def test_the_error_of_predictions_is_relative_to_what_came() -> None:
    right = Observation(0, True, 2.0, 10, 0.5, predicted_seconds=2.0, predicted_cost_usd=0.25)
    wrong = Observation(0, True, 2.0, 10, 0.5, predicted_seconds=5.0, predicted_cost_usd=0.75)
    unknown = Observation(0, True, 99.0, 10, 0.0)
    found = Prediction(Window((right, wrong, unknown)), 10)

    assert found.seconds_error == pytest.approx(3 / 4)
    assert found.cost_error == pytest.approx(0.5 / 1)
    assert Prediction(Window((unknown,)), 10).seconds_error is None


# performance


def test_the_slow_and_the_failing_get_less_but_never_nothing() -> None:
    windows = {
        "fast": answers([1.0] * 20), "slow": answers([4.0] * 20), "failing": answers([1.0] * 10, failed=10),
        "dead": answers([], failed=40), "new": answers([60.0] * 19),
    }  # fmt: skip
    found = adjusted(dict.fromkeys([*windows, "unknown"], 10.0), windows)

    assert found == pytest.approx({"fast": 10, "slow": 2.5, "failing": 5, "dead": 10 * LEAST, "new": 10, "unknown": 10})


def test_performance_moves_traffic_only_where_that_is_wanted() -> None:
    healths = {"a": Health(window=answers([1.0] * 20)), "b": Health(window=answers([9.0] * 20))}
    pair = [candidate("a"), candidate("b")]
    plain, moved = [
        {each.candidate.id: each.share for each in decide(demand(), pair, healths, 0, by_performance=wanted).judgements}
        for wanted in (False, True)
    ]

    assert plain == {"a": 0.5, "b": 0.5}
    assert moved == pytest.approx({"a": 0.9, "b": 0.1})


# decisions


@given(st.lists(st.sampled_from([0.0, 1.0, 5.0]), min_size=1, max_size=5), st.data())
def test_the_last_one_is_never_refused_for_its_health(weights: list[float], data: st.DataObject) -> None:
    names = [candidate(f"d{place}", weight) for place, weight in enumerate(weights)]
    until = st.one_of(st.none(), st.floats(0, 100))
    breakers = {each.id: Breaker(ejected_until=data.draw(until), probing=data.draw(st.booleans())) for each in names}
    healths = {name: Health(breaker) for name, breaker in breakers.items()}
    now = data.draw(st.floats(0, 100))
    decision = decide(demand(), names, healths, now)

    assert (decision.chosen is None) == (not any(weights))
    able = [each for each in names if each.weight > 0]
    if decision.chosen and any(breakers[each.id].phase(now) in (Phase.CLOSED, Phase.HALF_OPEN) for each in able):
        assert breakers[decision.chosen.id].phase(now) in (Phase.CLOSED, Phase.HALF_OPEN)
    for each in decision.judgements:
        assert (each.share > 0) == (not each.refusals)
    assert decision.chosen is None or math.isclose(sum(each.share for each in decision.judgements), 1)


def test_of_several_that_are_ejected_the_one_that_comes_back_first_is_asked() -> None:
    healths = {"a": Health(replace(EJECTED, ejected_until=20.0)), "b": Health(EJECTED)}
    decision = decide(demand(), [candidate("a", 99), candidate("b")], healths, 5.0)

    assert chosen(decision) == "b"
    assert refusals(decision)["a"] == ("has failed, and is left alone for another 15.0 s",)


def test_every_refusal_says_why() -> None:
    costly = Health(window=Window((Observation(0, True, 9.0, 10, cost_usd=0.5),)))
    asked = demand(min_accuracy=0.8, max_cost_usd=0.1, max_seconds=2.0)
    decision = decide(
        asked,
        [
            candidate("good"), candidate("other", tasks=("parts",)), candidate("type", model_type="parts"),
            candidate("place", environment="staging"), candidate("weak", accuracy=0.7), candidate("idle", 0.0),
            candidate("costly"), candidate("probed"),
        ],
        {"costly": costly, "probed": Health(replace(EJECTED, probing=True))},
        20.0,
    )  # fmt: skip

    assert chosen(decision) == "good"
    assert refusals(decision) == {
        "good": (),
        "other": ("was not trained for leads; its tasks: parts",),
        "type": ("is of model type parts, not sales",),
        "place": ("is in staging, not in production",),
        "weak": ("has accuracy 0.7, below 0.8",),
        "idle": ("has no weight",),
        "costly": ("is expected to cost 0.5 USD, above 0.1", "is expected to take 9 s, above 2"),
        "probed": ("has failed, and is being tried with one request",),
    }
    assert [each.candidate.id for each in decision.judgements if each.sick] == ["idle", "probed"]


def test_fallbacks_follow_the_request_s_chain_and_then_the_weights_whatever_the_key() -> None:
    four = [candidate("a", 1000.0), candidate("b", 2.0), candidate("c", 3.0), candidate("d", 1.0)]

    for key in KEYS[:50]:
        decision = decide(demand(key, fallback_chain=("d@1", "b@1")), four, {}, 0)
        others = [each.id for each in decision.fallbacks]
        assert others == [name for name in ("d", "b", "a", "c") if name != chosen(decision)]


def test_an_override_stands_above_weight_health_and_limits_and_has_no_fallback() -> None:
    idle = candidate("a", 0.0, environment="staging", accuracy=0.1)
    asked = demand(min_accuracy=0.9, override=Override("a@1", "we compare", "session"))
    decision = decide(asked, [idle, candidate("b")], {"a": Health(EJECTED)}, 0)

    assert (chosen(decision), decision.fallbacks) == ("a", ())
    assert refusals(decision)["b"] == ("the override names a@1",)
    wrong = decide(replace(asked, task="parts"), [idle, candidate("b")], {}, 0)
    assert wrong.chosen is None, "a model is not asked for what it never learnt, on nobody's word"
