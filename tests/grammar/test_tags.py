"""Structural tags: what their formats allow, and what is refused by name."""

import json
from typing import Any

import pytest

from jaxserve.api.structured_outputs import StructuredOutputsParams
from jaxserve.errors import InvalidRequestError
from tests.grammar.world import accepts, checker

NUMBER = {"type": "json_schema", "json_schema": {"type": "integer"}}
ANY: dict[str, Any] = {"type": "any_text"}
MARK = "<|im_start|>"


def text(value: str) -> dict[str, Any]:
    return {"type": "const_string", "value": value}


def tag(begin: str, content: Any, end: Any) -> dict[str, Any]:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def row(*elements: Any) -> dict[str, Any]:
    return {"type": "sequence", "elements": elements}


def tags(**options: Any) -> dict[str, Any]:
    both = [tag("<n>", NUMBER, "</n>"), tag("<t>", ANY, ["</t>", "."])]
    return {"type": "triggered_tags", "triggers": ["<n", "<t>"], "tags": both, **options}


def listed(**options: Any) -> dict[str, Any]:
    both = [tag("(", NUMBER, ")"), tag("[", NUMBER, "]")]
    return {"type": "tags_with_separator", "tags": both, "separator": ", ", **options}


def styled(style: str) -> dict[str, Any]:
    properties = {"a": {"type": "string"}, "n": {"type": "integer"}}
    schema = {"properties": properties, "required": ["n"], "additionalProperties": False}
    return {"type": "json_schema", "json_schema": schema, "style": style}


def params_of(form: dict[str, Any]) -> StructuredOutputsParams:
    return StructuredOutputsParams(
        structural_tag=json.dumps({"type": "structural_tag", "format": form})
    )


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        (text(f"a{MARK}b"), [f"a{MARK}b"], ["ab", ""]),
        (NUMBER, ["12"], ["a"]),
        ({"type": "json_schema", "json_schema": True}, ['{"a": [1]}'], ["a"]),
        ({"type": "regex", "pattern": "a/+b"}, ["a//b"], ["ab"]),
        ({"type": "grammar", "grammar": 'root ::= "a" b\nb ::= [0-9]'}, ["a1"], ["ab"]),
        ({"type": "grammar", "grammar": 'start: "a" B\nB: /[0-9]/'}, ["a1"], ["ab"]),
        (ANY, ["", "a\nb"], [MARK]),
        ({**ANY, "excludes": ["bad", "a.c"]}, ["abc"], ["so bad", "a.c"]),
        (row(text("a"), NUMBER, text(".")), ["a1."], ["a1", "1."]),
        (row(ANY, text("\n\n"), NUMBER), ["a\nb\n\n1"], ["a\nb\n1", "a\n\nb\n\n1"]),
        (row(ANY, tag("<n>", NUMBER, "</n>")), ["a<n>1</n>"], ["a<n>b</n>", "a"]),
        (row(ANY, text(MARK), NUMBER), [f"a{MARK}1"], [f"a{MARK}b"]),
        (row(ANY, text(f"\n{MARK}"), NUMBER), [f"a\n{MARK}1"], [f"a{MARK}1"]),
        ({"type": "or", "elements": [text("a"), text("b")]}, ["a", "b"], ["", "ab"]),
        ({"type": "optional", "content": text("a")}, ["", "a"], ["aa"]),
        ({"type": "plus", "content": text("a")}, ["a", "aa"], [""]),
        ({"type": "star", "content": text("a")}, ["", "aa"], ["b"]),
        ({"type": "repeat", "min": 1, "max": 2, "content": text("a")}, ["a", "aa"], ["", "aaa"]),
        ({"type": "repeat", "min": 2, "max": -1, "content": text("a")}, ["aa", "aaaa"], ["a"]),
        (tag("<t>", ANY, "</t>"), ["<t></t>", "<t>a<b</t>"], ["<t>a", "<t>a</t>b"]),
        (
            tag("<t>", row(text("x"), ANY), ["</t>", MARK]),
            ["<t>xa</t>", f"<t>x{MARK}"],
            ["<t></t>"],
        ),
        (tag("<t>", NUMBER, ""), ["<t>1"], ["<t>"]),
        (tags(), ["", "a<n>1</n>b<t>c.d", "<m>"], ["<n>a</n>", "<n1", "<t>a"]),
        (tags(at_least_one=True), ["<n>1</n>", "<t>a.b<n>1</n>c"], ["", "a<n>1</n>"]),
        (tags(stop_after_first=True), ["a<n>1</n>", "a"], ["<n>1</n>a"]),
        (tags(at_least_one=True, stop_after_first=True), ["<n>1</n>"], ["", "<n>1</n><n>1</n>"]),
        (tags(excludes=["bad"]), ["good<n>1</n>"], ["bad<n>1</n>", "bad"]),
        (tag("<a>", tags(), "</a>"), ["<a>b<n>1</n>c</a>"], ["<a>b<n>x</n></a>", "<a>b</a>c"]),
        (listed(), ["", "(1)", "(1), [2], (3)"], ["(1),", "(1] "]),
        (listed(at_least_one=True), ["(1), (2)"], [""]),
        (listed(stop_after_first=True), ["", "(1)"], ["(1), (2)"]),
        (
            styled("qwen_xml"),
            ["<parameter=a>\nb\n\n</parameter>\n<parameter=n>\n1\n</parameter>\n"],
            ["", "<parameter=a>\nb\n</parameter>\n", "<parameter=n>\nb\n</parameter>\n"],
        ),
        (
            styled("glm_xml"),
            ["<arg_key>n</arg_key><arg_value>1</arg_value>"],
            ["<arg_key>m</arg_key><arg_value>1</arg_value>"],
        ),
    ],
    ids=str,
)
def test_a_format_allows_what_it_says(
    form: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    params = params_of(form)
    checker().check(params)
    assert [accepts(params, answer) for answer in good] == [True] * len(good)
    assert [accepts(params, answer) for answer in bad] == [False] * len(bad)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"type": "dispatch", "rules": []}, "'dispatch' - at `$.format.type`"),
        ({"type": "exclude_token", "token": 5}, "'exclude_token'"),
        ({**ANY, "max_tokens": 5}, "unknown field `max_tokens` - at `$.format`"),
        ({**NUMBER, "any_order": True}, "unknown field `any_order`"),
        (styled("minimax_xml"), "'minimax_xml' - at `$.format.style`"),
        (row(ANY, NUMBER), "a const_string or a tag after any text"),
        ({"type": "star", "content": ANY}, "an end to any text that repeats"),
        ({"type": "or", "elements": []}, "elements in each or"),
        ({"type": "repeat", "min": 0, "max": 10**9, "content": text("a")}, "0 to 1024 times"),
        (listed(tags=[]), "1 to 512 tags"),
        (tags(triggers=["<n"]), "a trigger that it begins with"),
        ({"type": "grammar", "grammar": "hello"}, "neither Lark nor GBNF"),
        ({"type": "regex", "pattern": "(?=a)b"}, "look-ahead"),
        ({"type": "json_schema", "json_schema": {"not": {}}}, "not supported: not"),
        (tag("<t>", {"type": "const_string"}, ""), "missing required field `value`"),
        (5, "Expected `object`, got `int` - at `$.format`"),
    ],
    ids=str,
)
def test_what_no_grammar_follows_is_refused_by_name(form: Any, words: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        checker().check(params_of(form))
    assert refused.value.param == "structured_outputs.structural_tag"
    assert words in refused.value.message


def test_formats_may_be_deep_but_not_without_end() -> None:
    form = text("a")
    for _ in range(200):
        form = {"type": "optional", "content": form}
    with pytest.raises(InvalidRequestError, match="at most 128 levels"):
        checker().check(params_of(form))
