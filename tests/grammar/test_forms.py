"""Calls that a grammar binds are in the form of their model: its parser reads them back."""

import json
import random
import re
from functools import cache
from typing import Any

import jsonschema
import pytest
from transformers import AutoTokenizer

from jaxserve.chat import forced, tool_parsers
from jaxserve.chat.choice import NAME, written_calls
from jaxserve.chat.harmony import Harmony
from jaxserve.chat.parser import AnswerFormat, AnswerParser
from jaxserve.chat.pieces import Kind
from jaxserve.chat.template import ChatTemplate
from jaxserve.chat.tool_format import ToolFormat
from jaxserve.grammar import Function, can_bind, forced_calls, strict_calls
from jaxserve.tokenization.tokenizer import Tokenizer
from tests.data import DATA, needs_data
from tests.grammar.world import Model

FORMS: dict[str, ToolFormat | Harmony] = {
    "neutral": forced.FORMAT,
    **{name: tool_parsers.tool_format(name) for name in tool_parsers.names()},
}
KINDS: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": "string", "enum": ["a b", 'é"', "7", "true"]},
    {"const": "x/y", "type": "string"},
    {"type": "string", "pattern": "^[a-c]{2,4}$"},
    {"type": "string", "pattern": "[0-9]/"},
    {"type": "string", "minLength": 2, "maxLength": 5},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "email"},
    {"type": "integer", "minimum": -7, "maximum": 1000},
    {"type": "number"},
    {"type": "boolean"},
    {"type": "null"},
    {"type": ["string", "null"]},
    {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
    {"anyOf": [{"type": "string", "maxLength": 2}, {"type": "integer", "maximum": 5}]},
    {"anyOf": [{"type": "boolean"}, {"const": "auto"}]},
    {"enum": [1, "1", None, "b"]},
    {"type": "array", "items": {"type": "string"}, "maxItems": 2},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
    {"type": "object", "properties": {"k": {"type": "string"}}, "additionalProperties": False},
    {"$ref": "#/$defs/size"},
    {"anyOf": [{"$ref": "#/$defs/size"}, {"type": "null"}]},
    {"type": "array", "items": {"$ref": "#/$defs/size"}, "maxItems": 2},
    {},
]
DEFS = {"size": {"enum": ["s", "l"]}}
# Ends of texts, and other texts that are seldom drawn.
HINTS = [
    *('"', "}", "]", ")", ", ", '"}'),
    *("\n</parameter>\n", "</parameter>\n", "</｜DSML｜parameter>\n", "</arg_value>\n"),
    *("7", "true", "null"),
]


@cache
def model(name: str, *, is_marked: bool = True) -> Model:
    """Models of a format, to which its markup is tokens or text like any other."""
    markers = [*FORMS[name].markers, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"]
    markers += ["<｜tool▁sep｜>", "<|tool_call_argument_begin|>", "[ARGS]"]
    tokens = [text for text in markers if re.fullmatch(r"<[^>]+>|\[[A-Z_]+\]", text)]
    return Model(tokens if is_marked else [])


def drawn_function(chance: random.Random, name: str) -> Function:
    keys = ["city", "a.b", "units", "x-y"] if name not in {"pythonic", "lfm2"} else ["city", "b_2"]
    keys = chance.sample(keys, chance.randint(0, len(keys)))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {key: chance.choice(KINDS) for key in keys},
        "required": [key for key in keys if chance.random() < 0.5],
        "$defs": DEFS,
    }
    if chance.random() < 0.2:
        schema["additionalProperties"] = chance.choice([True, {"type": "integer"}])
    return Function(name=chance.choice(["f", "get_it"]), parameters=schema, strict=True)


def read(name: str, text: str, functions: list[Function]) -> tuple[str, list[tuple[str, Any]]]:
    """The content of a text, and the calls in it."""
    tools = FORMS[name]
    reasoning = tools if isinstance(tools, Harmony) else None
    schemas = {function.name: function.parameters or {} for function in functions}
    parser = AnswerParser(AnswerFormat(tools=tools, reasoning=reasoning), schemas=schemas)
    calls: list[list[str]] = []
    content = ""
    for piece in parser.feed(text) + parser.finish():
        if piece.kind is Kind.CALL:
            calls.append([piece.text, ""])
        elif piece.kind is Kind.ARGUMENTS:
            calls[-1][1] += piece.text
        elif piece.kind is Kind.CONTENT:
            content += piece.text
    return content, [(called, json.loads(arguments)) for called, arguments in calls]


def check(function: Function, arguments: Any) -> None:
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(function.schema, format_checker=checker).validate(arguments)


@pytest.mark.parametrize("is_marked", [True, False])
@pytest.mark.parametrize("name", FORMS)
def test_forced_calls_are_read_back_as_their_schemas_want_them(name: str, is_marked: bool) -> None:
    chance = random.Random(name)
    num_read = 0
    for _ in range(12):
        function = drawn_function(chance, name)
        form = FORMS[name].written
        assert can_bind([function], form)
        params = forced_calls([function], form, parallel=True)
        it = model(name, is_marked=is_marked)
        it.checker.check(params)
        text = it.writes(params, chance, hints=[*HINTS, form.end or "\n"])
        if text is None:
            continue
        content, calls = read(name, text, [function])
        assert content.strip() == "", text
        assert calls, text
        for called, arguments in calls:
            assert called == function.name
            check(function, arguments)
        num_read += 1
    assert num_read > 2


@pytest.mark.parametrize("name", tool_parsers.names())
def test_a_strict_function_is_called_as_it_is_declared_or_not_at_all(name: str) -> None:
    seven = {"properties": {"n": {"type": "integer", "enum": [77]}}, "required": ["n"]}
    function = Function(name="f", parameters=seven, strict=True)
    tools, chance = FORMS[name], random.Random(name)
    call = model(name).writes(forced_calls([function], tools.written, parallel=False), chance)
    assert call is not None
    params = strict_calls([function], tools, parallel=True)
    assert params is not None
    model(name).checker.check(params)
    text = "<|channel|>final<|message|>No." if isinstance(tools, Harmony) else "No."
    wrong = call.replace("77", "78")
    answers = [text, call, wrong]
    assert [model(name).accepts(params, answer) for answer in answers] == [True, True, False]
    assert read(name, call, [function]) == ("", [("f", {"n": 77})])


# Checkpoints whose templates write a call as the model does (others add the client's ids).
TEMPLATES = {
    "unsloth-Apriel-1.5": "apriel",
    "ByteDance-Seed-OSS": "seed_oss",
    "GLM-4.6": "glm",
    "GLM-5.2": "glm",
    "GigaChat3.1-10B-A1.8B": "gigachat3",
    "Qwen-Qwen2.5-7B-Instruct": "hermes",
    "Qwen3-Coder": "qwen3_coder",
    "Qwen3.5-4B": "qwen3_coder",
    "deepseek-ai-DeepSeek-V3.2": "deepseek_v32",
    "deepseek-ai-DeepSeek-V4": "deepseek_v4",
    "mistralai-Ministral-3-14B-Reasoning-2512": "mistral",
    "unsloth-mistral-Devstral-Small-2507": "mistral",
}
TEXT_OF = {"type": "object", "properties": {"text": {"type": "string"}, "number": {}}}
PROBE = Function(name=NAME, parameters=TEXT_OF)


@needs_data
@pytest.mark.parametrize("title", TEMPLATES)
def test_a_call_that_the_models_template_writes_could_have_been_forced(title: str) -> None:
    pretrained = AutoTokenizer.from_pretrained(DATA / "tokenizers/mistral-v3")
    pretrained.chat_template = (DATA / f"chat_templates/{title}.jinja").read_text("utf-8")
    name = TEMPLATES[title]
    form = FORMS[name].written
    params = forced_calls([PROBE], form, parallel=True)
    begin = form.begin or form.call.partition("{")[0]
    text, *_ = written_calls(ChatTemplate(Tokenizer(pretrained)))
    assert model(name).accepts_some(params, text[text.index(begin) :]), text
