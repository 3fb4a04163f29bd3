"""A schema that is not strict loses what no grammar can follow, and nothing else."""

import json
from typing import Any

import pytest
from llguidance import LLMatcher

from jaxserve.grammar.calls import Function
from jaxserve.grammar.loose_schemas import UNKNOWN, loosened

KEPT = {
    "type": "object",
    "properties": {"not": {"type": "string", "format": "date"}, "if": {"enum": [{"not": 1}]}},
    "required": ["not"],
    "additionalProperties": {"anyOf": [{"const": {"contains": 1}}, {"type": "null"}]},
}


def test_names_and_values_are_no_keywords() -> None:
    assert loosened(KEPT) == KEPT


@pytest.mark.parametrize("keyword", sorted(UNKNOWN))
def test_an_unknown_keyword_is_left_out_at_any_depth(keyword: str) -> None:
    schema = {"items": {"anyOf": [{"type": "array", keyword: {}}]}, "$defs": {"a": {keyword: {}}}}
    left = loosened(schema)
    assert left == {"items": {"anyOf": [{"type": "array"}]}, "$defs": {"a": {}}}
    assert validity({keyword: {}}), "llguidance knows the keyword now"
    assert not validity(left)


def test_an_unknown_format_is_left_out() -> None:
    assert loosened({"type": "string", "format": "color"}) == {"type": "string"}
    assert not validity({"type": "string", "format": "uri"})


def test_strict_functions_keep_all() -> None:
    parameters = {"type": "object", "propertyNames": {"pattern": "a"}}
    assert Function(name="f", parameters=parameters, strict=True).schema == parameters
    assert Function(name="f", parameters=parameters).schema == {"type": "object"}


def validity(schema: Any) -> str:
    """Return llguidance's error for a schema; empty if it accepts it."""
    return LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(json.dumps(schema)))
