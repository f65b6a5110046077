"""Answers of upstreams against JSON schemas, either of which may be hostile."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from neuroweaver import answers
from neuroweaver.errors import UsageError
from neuroweaver.tasks import PARTS_LOOKUP
from serving.engine.conformity import Conformity
from serving.engine.protocol import EngineError

SCHEMA = answers.schema(PARTS_LOOKUP)
RIGHT = '{"quantity": 2, "position": "front", "partNumber": null, "partName": "brake pad"}'


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def test_an_answer_of_the_schema_passes_in_any_order_and_spacing() -> None:
    Conformity(SCHEMA).check(RIGHT)
    Conformity({"type": "object"}).check(" {} ")
    Conformity({"type": "array", "items": {"$ref": "#/$defs/n"}, "$defs": {"n": {"type": "integer"}}}).check("[1, 2]")


@pytest.mark.parametrize(
    "text",
    [
        "", "no", RIGHT[:-1], RIGHT + "x", RIGHT.replace("2", '"2"'), RIGHT.replace("front", "somewhere"),
        RIGHT.replace("2", "NaN"), RIGHT.replace("{", '{"quantity": 1, ', 1), RIGHT.replace("{", '{"more": 1, ', 1),
        '{"partName": "x"}', "[]", "null", "[" * 100_000, '{"quantity": ' + "9" * 5000 + "}",
    ],
)  # fmt: skip
def test_any_other_answer_is_an_error_that_does_not_quote_it(text: str) -> None:
    with pytest.raises(EngineError, match="the answer (is no JSON|does not keep to the JSON schema)") as caught:
        Conformity(SCHEMA).check(text)

    assert "brake" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [("^a+$", "aaa", True), ("^a+$", "b", False), ("b", "abc", True), (r"^\d{4}$", "2024", True), ('^é"$', 'é"', True)],
)
def test_patterns_are_matched(pattern: str, text: str, fits: bool) -> None:
    conformity = Conformity({"type": "object", "properties": {"x": {"pattern": pattern}}})
    document = answers.dumps({"x": text})
    if fits:
        conformity.check(document)
    else:
        with pytest.raises(EngineError, match=r"the JSON schema \(pattern\)"):
            conformity.check(document)


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|a)*$", "^a{4294967295}$", "^(a{1,9999}){1,9999}$"])
def test_a_pattern_that_takes_others_for_ever_takes_no_time_here(pattern: str) -> None:
    started = time.monotonic()

    with pytest.raises(EngineError):
        Conformity({"pattern": pattern}).check(answers.dumps("a" * 5000 + "b"))

    assert time.monotonic() - started < 2


def test_references_are_followed_a_limited_number_of_times() -> None:
    definitions: dict[str, Any] = {
        f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]} for n in range(40)
    }

    with pytest.raises(EngineError, match="more than 20000 references"):
        Conformity({"$ref": "#/$defs/d0", "$defs": {**definitions, "d40": {}}}).check("1")
    with pytest.raises(EngineError, match="can't be checked"):
        Conformity({"$ref": "#"}).check("1")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "nil"}, "nil"),
        ({"minimum": "x"}, "minimum"),
        ({"properties": {"a": {"pattern": "("}}}, "pattern"),
        ({"pattern": "^(?=a)b"}, "look-around"),
        (deep(5000), "it is too deep"),
        ({"patternProperties": {"^a": {}}}, "patternProperties can't be checked"),
    ],
)
def test_a_schema_that_can_t_be_kept_is_refused_beforehand(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Conformity(schema)


def test_no_answer_is_right_where_nothing_is_allowed() -> None:
    with pytest.raises(EngineError, match="nothing is allowed"):
        Conformity({"allOf": [False]}).check("1")


def test_nothing_is_fetched_for_a_reference(tmp_path: Path) -> None:
    (tmp_path / "any.json").write_text("{}")

    for reference in ((tmp_path / "any.json").as_uri(), "http://127.0.0.1:9/any.json", "#/$defs/none"):
        with pytest.raises(UsageError, match="refers to what it does not hold"):
            Conformity({"$ref": reference}).check("1")
