"""Outputs for random schemas validate against them, or the schemas are refused."""

import json
import random
from decimal import Decimal, localcontext
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema

from jaxserve.api.structured_outputs import StructuredOutputsParams
from jaxserve.errors import InvalidRequestError
from jaxserve.grammar.matchers import LIMIT_REACHED
from tests.grammar.world import accepts, compiler, vocabulary
from tests.server.world import tokenizer

MAX_TOKENS = 400
SCALARS: list[dict[str, Any]] = [
    {"type": "null"},
    {"type": "boolean"},
    {"type": "integer", "minimum": -7, "maximum": 1000},
    {"type": "integer", "multipleOf": 5},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 2.5},
    {"type": "string", "maxLength": 5},
    {"type": "string", "pattern": "^[a-c]{2,4}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"enum": ["a", "é", '"', 1, None, [1], {"b": 2}]},
    {"const": "x\\y\n"},
]

# Schemas of numbers exact to the last digit, and of keys that could come twice.
EXACT: list[dict[str, Any]] = [
    {"type": "integer", "exclusiveMinimum": 9007199254740988, "maximum": 9007199254740991},
    {"type": "integer", "minimum": 9007199254740990, "maximum": 9007199254740992},
    {"type": "integer", "minimum": -9000000000000000000, "maximum": -8 * 10**18},
    {"type": "number", "multipleOf": 0.01, "minimum": -1, "exclusiveMaximum": 0.3},
    {"enum": [9007199254740992, 10**18, 0.1, 1.5e-7, 1e15]},
    {
        "type": "object",
        "patternProperties": {"^[ab]$": {"type": "integer", "maximum": 9}},
        "additionalProperties": False,
        "minProperties": 1,
    },
    {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": {"enum": [1, "é"]},
        "minProperties": 2,
        "maxProperties": 2,
    },
]


def combined(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Schemas of objects, arrays and choices of other schemas."""
    names = st.sampled_from(["a", "b", "key with space", "ü"])

    def an_object(properties: dict[str, Any], num_required: int, extra: object) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties)[:num_required],
            "additionalProperties": extra,
        }

    return st.one_of(
        st.builds(
            an_object,
            st.dictionaries(names, inner, max_size=3),
            st.integers(0, 3),
            st.one_of(st.just(False), inner),
        ),
        st.builds(
            lambda items, low, more: {
                "type": "array",
                "items": items,
                "minItems": low,
                "maxItems": low + more,
            },
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.builds(lambda choices: {"anyOf": choices}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda other: {"$ref": "#/$defs/d", "$defs": {"d": other}}, inner),
    )


# A schema that is nested refers to what is not there: references stand at the root alone.
SCHEMAS = st.recursive(st.sampled_from(SCALARS + EXACT), combined, max_leaves=5).filter(
    lambda schema: "$defs" not in json.dumps([*schema.values()])[1:] or "$defs" in schema
)
FUZZ = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def written(params: StructuredOutputsParams, seed: int) -> str | None:
    """An answer drawn at random from what the grammar allows; None if it would be too long."""
    matcher = compiler().matcher(params)
    chance = random.Random(seed)
    token_ids: list[int] = []
    end = tokenizer().eos_ids[0]
    while not matcher.is_stopped():
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist()
        assert not matcher.is_error(), matcher.get_error()
        token_id = end if end in allowed else chance.choice(allowed)
        if token_id == end:
            break
        token_ids.append(token_id)
        if len(token_ids) > MAX_TOKENS:
            return None
        if not matcher.consume_token(token_id):
            # Such as an object that must have itself in it, and so no end.
            assert LIMIT_REACHED.search(matcher.get_error()), matcher.get_error()
            return None
    assert not matcher.is_error(), matcher.get_error()
    return tokenizer().decode(token_ids)


def faults(value: Any, schema: dict[str, Any]) -> list[jsonschema.ValidationError]:
    """Return the parts of a value that do not validate."""
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    validator = jsonschema.Draft202012Validator(schema, format_checker=checker)
    return list(validator.iter_errors(value))


def _exact(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema whose numbers are Decimals: of floats, no multiple would be one."""
    exact: dict[str, Any] = json.loads(json.dumps(schema), parse_float=Decimal)
    return exact


@FUZZ
@given(SCHEMAS, st.integers(0, 2**16))
def test_what_a_schema_allows_validates(schema: dict[str, Any], seed: int) -> None:
    params = StructuredOutputsParams(json=schema, disable_any_whitespace=True)
    try:
        text = written(params, seed)
    except InvalidRequestError:
        reject()  # what nothing could meet; were all refused, hypothesis would fail
    assume(text is not None)
    try:
        with localcontext(prec=MAX_TOKENS):
            found = faults(json.loads(str(text), parse_float=Decimal), _exact(schema))
    except RecursionError:
        reject()  # a choice of itself, of which the validator sees no end
    assert found == []


@pytest.mark.parametrize("schema", [s for s in SCALARS if "format" not in s], ids=str)
def test_what_validates_is_allowed(schema: dict[str, Any]) -> None:
    params = StructuredOutputsParams(json=schema)

    @settings(FUZZ, max_examples=10)
    @given(from_schema(schema))
    def check(value: Any) -> None:
        text = json.dumps(value, ensure_ascii=False)
        # Numbers with bounds are written without exponents, and texts without \u.
        is_other = isinstance(value, float) and "e" in text
        if text.isprintable() and not (is_other or "\\u" in text):
            assert accepts(params, text), text

    check()


def test_the_vocabulary_is_as_wide_as_its_masks() -> None:
    assert vocabulary().num_words * 32 >= vocabulary().whole().vocab_size
