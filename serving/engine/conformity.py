"""Whether an answer keeps to a JSON schema, where somebody else's server promised so.

Both may be hostile: the schema is a caller's, the answer a server's. So nothing is fetched, patterns are matched in
linear time, and references are followed a limited number of times.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from jsonschema import Draft202012Validator, FormatChecker, validators
from jsonschema.exceptions import SchemaError, ValidationError
from llguidance import LLMatcher, LLTokenizer
from referencing import Registry
from referencing.exceptions import Unresolvable

from neuroweaver.errors import NeuroWeaverError, UsageError
from serving.engine.protocol import EngineError

MAX_REFERENCES = 20_000
_BYTES = LLTokenizer("byte")


class Conformity:
    """Raises UsageError where `schema` can't be kept or checked, saying why."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = dict(schema)
        try:
            # Without formats: a pattern is compiled by `_check_keywords`, and never by `re`.
            Draft202012Validator.check_schema(self._schema, format_checker=FormatChecker(()))
            _check_keywords(self._schema)
        except SchemaError as error:
            raise _unusable(f"{'/'.join(map(str, error.path)) or 'schema'}: {error.message[:200]}") from None
        except RecursionError:
            raise _unusable("it is too deep") from None

    def check(self, text: str) -> None:
        """Raises EngineError where `text` is no JSON document of the schema, UsageError for a reference to nothing."""
        try:
            found = json.loads(text, parse_constant=_no_number, object_pairs_hook=_once)
        except (ValueError, RecursionError):
            raise EngineError("the answer is no JSON") from None
        try:
            wrong = next(_checker()(self._schema, registry=Registry()).iter_errors(found), None)
        except Unresolvable:
            raise _unusable("it refers to what it does not hold") from None
        except NeuroWeaverError:
            raise
        except Exception as error:  # a caller's schema can be wrong in any way
            raise EngineError(f"the answer can't be checked: {type(error).__name__}") from None
        if wrong is not None:
            raise EngineError(
                f"the answer does not keep to the JSON schema ({wrong.validator or 'nothing is allowed'})"
            )


def _checker() -> Any:
    """jsonschema's own, with patterns and references as this module's docstring says."""
    followed = 0

    def limited(keyword: str) -> Any:
        follow = Draft202012Validator.VALIDATORS[keyword]

        def reference(validator: Any, target: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
            nonlocal followed
            followed += 1
            if followed > MAX_REFERENCES:
                raise EngineError(f"the answer can't be checked: more than {MAX_REFERENCES} references to follow")
            yield from follow(validator, target, instance, schema) or ()

        return reference

    replaced = {"pattern": _pattern, "$ref": limited("$ref"), "$dynamicRef": limited("$dynamicRef")}
    return validators.extend(Draft202012Validator, replaced)


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not isinstance(instance, str):
        return
    matcher = _matcher(pattern)
    tokens = _BYTES.tokenize_str(json.dumps(instance, ensure_ascii=False))
    if matcher.try_consume_tokens(tokens) < len(tokens) or not matcher.is_accepting():
        yield ValidationError("does not match")


def _matcher(pattern: str) -> LLMatcher:
    """As the embedded engine's grammar understands it. Raises UsageError."""
    grammar = LLMatcher.grammar_from_json_schema(json.dumps({"type": "string", "pattern": pattern}))
    matcher = LLMatcher(_BYTES, grammar)
    if matcher.is_error():
        raise _unusable(f"pattern: {' '.join(matcher.get_error().split())[:200]}")
    return matcher


def _check_keywords(node: Any) -> None:
    if isinstance(node, list):
        for each in node:
            _check_keywords(each)
    elif isinstance(node, dict):
        if "patternProperties" in node:
            raise _unusable("patternProperties can't be checked")
        if isinstance(node.get("pattern"), str):
            _matcher(node["pattern"])
        for each in node.values():
            _check_keywords(each)


def _unusable(reason: str) -> UsageError:
    return UsageError(f"the JSON schema can't be used: {reason}")


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key twice")
    return found
