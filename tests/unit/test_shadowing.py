"""What is said of a shadow: counted copy by copy, and field by field."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from neuroweaver import answers
from neuroweaver.routing.shadowing import ShadowScore, agreeing
from neuroweaver.tasks import LEAD_QUALIFICATION, OBJECTION_HANDLING, SERVICE_DIAGNOSIS

LEAD = answers.render(LEAD_QUALIFICATION, {"vehicle_type": "truck", "make": "Ford"}).text
COPIES = st.lists(st.none() | st.dictionaries(st.sampled_from("abc"), st.booleans()), max_size=30)


@given(COPIES, st.integers(0, 9))
def test_a_score_is_the_sum_of_its_copies(copies: list[dict[str, bool] | None], dropped: int) -> None:
    score = ShadowScore()
    for copy in copies:
        score = score.with_failure() if copy is None else score.with_answer(0.5, 0.25, copy)
    for _ in range(dropped):
        score = score.with_drop()

    answered = [copy for copy in copies if copy is not None]
    values = [equal for copy in answered for equal in copy.values()]
    assert (score.answered, score.failed, score.dropped) == (len(answered), len(copies) - len(answered), dropped)
    assert (score.seconds, score.given_seconds) == (0.5 * len(answered), 0.25 * len(answered))
    assert score.agreement == (sum(values) / len(values) if values else None)
    for name, share in score.agreement_by_field.items():
        of_field = [copy[name] for copy in answered if name in copy]
        assert share == sum(of_field) / len(of_field)


def test_fields_agree_where_they_say_the_same() -> None:
    other = answers.render(LEAD_QUALIFICATION, {"vehicle_type": "suv", "make": "Ford", "budget_max": 30000}).text

    assert set(agreeing(LEAD_QUALIFICATION, LEAD, LEAD).values()) == {True}  # type: ignore[union-attr]
    found = agreeing(LEAD_QUALIFICATION, LEAD, other)
    assert found is not None
    assert {name for name, equal in found.items() if not equal} == {"vehicle_type", "budget_max"}


def test_free_text_is_not_compared_and_what_is_no_answer_says_nothing() -> None:
    told = answers.render(
        OBJECTION_HANDLING, {"price_response": "a", "features_response": "b", "value_response": "c"}
    ).text
    seen = answers.render(SERVICE_DIAGNOSIS, {"causes": ["pads"], "steps": ["look"]}).text

    assert agreeing(OBJECTION_HANDLING, told, told) == {}
    assert agreeing(SERVICE_DIAGNOSIS, seen, seen) == {"system": True, "severity": True}
    assert agreeing(LEAD_QUALIFICATION, LEAD, "{}") is None
    assert agreeing(LEAD_QUALIFICATION, "{}", LEAD) == {}
