"""Tools to grammars: what is written are calls, and their arguments follow the tools' schemas."""

from typing import Any

import pytest

from jaxserve.chat import forced
from jaxserve.chat.tool_parsers import tool_format
from jaxserve.errors import InvalidRequestError
from jaxserve.grammar import Function, can_bind, forced_calls, strict_calls
from jaxserve.grammar.calls import MAX_FORCED_CALLS
from tests.grammar.world import accepts, checker

SIZE = {"$defs": {"Size": {"enum": ["s", "l"]}}}
SHOE = Function(
    name="buy_shoe",
    parameters={
        "type": "object",
        "properties": {"size": {"$ref": "#/$defs/Size"}},
        "required": ["size"],
        "additionalProperties": False,
        **SIZE,
    },
    strict=True,
)
LEAVE = Function(name="leave")
HERMES, CODER, LLAMA, PYTHONIC = map(
    tool_format, ("hermes", "qwen3_coder", "llama3_json", "pythonic")
)
NEUTRAL = forced.FORMAT.written
LEAVES = '{"name": "leave", "arguments": {}}'


@pytest.mark.parametrize(
    ("text", "is_good"),
    [
        ('[{"name": "buy_shoe", "arguments": {"size": "s"}}]', True),
        ('[{"name": "leave", "arguments": {"now": true}}]', True),
        ('[{"name": "buy_shoe", "arguments": {"size": "m"}}]', False),
        ('[{"name": "steal", "arguments": {}}]', False),
        ("[]", False),
        ("I would rather not.", False),
        (f"[{LEAVES}, {LEAVES}]", True),
    ],
)
def test_forced_calls_are_calls_of_the_functions(text: str, is_good: bool) -> None:
    params = forced_calls([SHOE, LEAVE], NEUTRAL, parallel=True)
    checker().check(params)
    assert accepts(params, text) is is_good


def test_there_is_one_call_where_there_may_not_be_more() -> None:
    params = forced_calls([LEAVE], NEUTRAL, parallel=False)
    assert accepts(params, f"[{LEAVES}]")
    assert not accepts(params, f"[{LEAVES}, {LEAVES}]")


def test_forced_calls_have_an_end() -> None:
    params = forced_calls([LEAVE], NEUTRAL, parallel=True)
    most = [LEAVES] * MAX_FORCED_CALLS
    assert accepts(params, f"[{', '.join(most)}]")
    assert not accepts(params, f"[{', '.join([*most, LEAVES])}]")


CALL = '<tool_call>\n{"name": "buy_shoe", "arguments": {"size": "s"}}\n</tool_call>'
PARAMETER = "<parameter=size>\ns\n</parameter>\n"
CODED = f"<tool_call>\n<function=buy_shoe>\n{PARAMETER}</function>\n</tool_call>"
JSON = '{"name": "buy_shoe", "parameters": {"size": "s"}}'


@pytest.mark.parametrize(
    ("tools", "parallel", "text", "is_good"),
    [
        (HERMES, True, "No.", True),
        (HERMES, True, f"Sure: {CALL}", True),
        (HERMES, True, f"{CALL} and {CALL}.", True),
        (HERMES, True, f"Sure: {CALL.replace('size', 'length')}", False),
        (HERMES, False, f"Sure: {CALL}", True),
        (HERMES, False, f"Sure: {CALL} {CALL}", False),
        (CODER, True, f"Sure: {CODED}\n{CODED}", True),
        (CODER, True, CODED.replace("\ns\n", "\nm\n"), False),
        (CODER, True, "<function=buy_shoe>", False),
        (LLAMA, True, "No.", True),
        (LLAMA, True, f"{JSON}; {JSON}", True),
        (LLAMA, False, f"{JSON}; {JSON}", False),
        (LLAMA, True, JSON.replace('"s"', '"m"'), False),
        (LLAMA, True, '{ "name" : "buy_shoe"', False),
        (LLAMA, True, '{"size": "m"}', True),
        (PYTHONIC, True, '[buy_shoe(size="s")]', True),
        (PYTHONIC, True, '[buy_shoe(size="m")]', False),
        (PYTHONIC, True, '[buy_hat(size="m")]', True),
    ],
)
def test_strict_functions_are_called_as_they_are_declared(
    tools: Any, parallel: bool, text: str, is_good: bool
) -> None:
    params = strict_calls([SHOE], tools, parallel=parallel)
    assert params is not None
    checker().check(params)
    assert accepts(params, text) is is_good


def test_functions_that_are_not_strict_leave_the_model_free() -> None:
    assert strict_calls([LEAVE], HERMES, parallel=True) is None


def test_functions_that_are_not_strict_take_anything_beside_those_that_are() -> None:
    loose = Function(name="leave", parameters={"properties": {"at": {"type": "string"}}})
    params = strict_calls([SHOE, loose], CODER, parallel=True)
    assert params is not None
    value = "<parameter=when>\nat [once\n</parameter>\n"
    text = f"<tool_call>\n<function=leave>\n{value}</function>\n</tool_call>"
    assert accepts(params, text)


def test_a_function_has_no_arguments_but_those_it_declares() -> None:
    assert Function(name="now", parameters={"properties": {}}).schema == {
        "type": "object",
        "properties": {},
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    "says_of_others",
    [{"additionalProperties": {"type": "string"}}, {"allOf": [{"required": ["a"]}]}],
)
def test_what_a_schema_says_of_other_arguments_stays(says_of_others: dict[str, object]) -> None:
    schema = {"type": "object", "properties": {}, **says_of_others}
    assert Function(name="any", parameters=schema).schema == schema


DEEP: dict[str, Any] = {}
for _ in range(5000):
    DEEP = {"properties": {"a": DEEP}}
CYCLE = {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}


@pytest.mark.parametrize(
    "parameters",
    [
        {"anyOf": [{"type": "object"}]},
        {"properties": {"a>": {}}},
        {"properties": {"a": {"type": "string", "contentEncoding": "base64"}}},
        {"properties": {"a": 5}},
        {"properties": 5},
        {"required": [5]},
        {"properties": {"a": {"type": "string", "anyOf": 5}}},
    ],
    ids=str,
)
def test_what_cannot_stand_between_tags_is_not_bound_so(parameters: dict[str, Any]) -> None:
    assert can_bind([LEAVE], CODER.written)
    assert not can_bind([Function(name="f", parameters=parameters)], CODER.written)


def test_schemas_that_refer_to_themselves_have_an_end() -> None:
    parameters = {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": CYCLE}}
    function = Function(name="f", parameters=parameters)
    assert can_bind([function], CODER.written)  # a place of JSON
    assert not can_bind([function], PYTHONIC.written)


def test_a_name_that_is_none_in_python_is_not_bound_so() -> None:
    assert not can_bind([Function(name="2nd")], PYTHONIC.written)


def test_a_schema_too_deep_for_anything_is_refused() -> None:
    assert not can_bind([Function(name="f", parameters=DEEP)], CODER.written)
    with pytest.raises(InvalidRequestError, match="too deep"):
        forced_calls([Function(name="f", parameters=DEEP)], NEUTRAL, parallel=True)
