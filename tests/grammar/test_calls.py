"""Tools to grammars: what is written are calls, and their arguments follow the tools' schemas."""

import pytest

from jaxserve.grammar import CallFormat, Function, forced_calls, tagged_calls
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
)
LEAVE = Function(name="leave")
HERMES = CallFormat(
    trigger="<tool_call>",
    begin="<tool_call>\n",
    end="\n</tool_call>",
    name_key="name",
    arguments_key="arguments",
)
TAGGED = CallFormat(trigger="<function=", begin="<function={name}>", end="</function>")


@pytest.mark.parametrize(
    ("text", "is_good"),
    [
        ('[{"name":"buy_shoe","arguments":{"size":"s"}}]', True),
        ('[{"name":"leave","arguments":{"now":true}}]', True),
        ('[{"name":"buy_shoe","arguments":{"size":"m"}}]', False),
        ('[{"name":"steal","arguments":{}}]', False),
        ("[]", False),
        ("I would rather not.", False),
        ('[{"name":"leave","arguments":{}},{"name":"leave","arguments":{}}]', True),
    ],
)
def test_forced_calls_are_calls_of_the_functions(text: str, is_good: bool) -> None:
    params = forced_calls([SHOE, LEAVE], parallel=True)
    checker().check(params)
    assert accepts(params, text) is is_good


def test_there_is_one_call_where_there_may_not_be_more() -> None:
    params = forced_calls([LEAVE], parallel=False)
    assert accepts(params, '[{"name":"leave","arguments":{}}]')
    two = '[{"name":"leave","arguments":{}},{"name":"leave","arguments":{}}]'
    assert not accepts(params, two)


def test_reasoning_may_come_before_forced_calls() -> None:
    params = forced_calls([LEAVE], parallel=False, reasoning_end="</think>")
    assert accepts(params, 'Well.</think>\n\n[{"name":"leave","arguments":{}}]')


CALL = '<tool_call>\n{"name": "buy_shoe", "arguments": {"size": "s"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("required", "parallel", "text", "is_good"),
    [
        (True, True, CALL, True),
        (True, True, f"{CALL}\n{CALL}", True),
        (True, True, CALL.replace('"s"', '"m"'), False),
        (True, True, f"Sure. {CALL}", False),
        (True, False, CALL, True),
        (True, False, f"{CALL}\n{CALL}", False),
        (False, True, "No.", True),
        (False, True, f"Sure: {CALL}", True),
        (False, True, f"Sure: {CALL.replace('size', 'length')}", False),
        (False, False, f"Sure: {CALL}", True),
        (False, False, f"Sure: {CALL} {CALL}", False),
    ],
)
def test_calls_in_the_models_own_format(
    required: bool, parallel: bool, text: str, is_good: bool
) -> None:
    strict = Function(name=SHOE.name, parameters=SHOE.parameters, strict=True)
    params = tagged_calls([strict], HERMES, required=required, parallel=parallel)
    assert params is not None
    checker().check(params)
    assert accepts(params, text) is is_good


def test_a_format_may_name_the_function_outside_of_the_json() -> None:
    params = tagged_calls([SHOE, LEAVE], TAGGED, required=True, parallel=True)
    assert params is not None
    assert accepts(params, '<function=buy_shoe>{"size": "l"}</function>')
    assert accepts(params, "<function=leave>{}</function>")
    assert not accepts(params, '<function=buy_shoe>{"size": "m"}</function>')


def test_functions_that_are_not_strict_leave_the_model_free() -> None:
    assert tagged_calls([SHOE, LEAVE], HERMES, required=False, parallel=True) is None


def test_a_function_has_no_arguments_but_those_it_declares() -> None:
    assert Function(name="now", parameters={"type": "object", "properties": {}}).schema == {
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
