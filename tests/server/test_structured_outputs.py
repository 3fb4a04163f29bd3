"""Structured outputs, in every form in which a request can ask for them."""

import json
from typing import Any

import jsonschema
import pytest

from tests.server.world import World


def properties(num: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": {} for i in range(num)}}


SCHEMA = {
    "type": "object",
    "properties": {"size": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["size"],
    "additionalProperties": False,
}
TAG = {
    "type": "structural_tag",
    "triggers": ["<f"],
    "structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}],
    "at_least_one": True,
    "stop_after_first": True,
}
FORMAT = {
    "type": "tag",
    "begin": "<f>",
    "content": {"type": "json_schema", "json_schema": SCHEMA},
    "end": "</f>",
}
CHAT = {"messages": [{"role": "user", "content": "fox"}], "max_tokens": 90, "seed": 1}


def answer(asked: dict[str, Any]) -> str:
    with World() as world, world.http() as http:
        response = http.post("/v1/chat/completions", json={**CHAT, **asked})
        assert response.status_code == 200, response.text
        choice = response.json()["choices"][0]
        assert choice["finish_reason"] == "stop"
        text = choice["message"]["content"]
        assert isinstance(text, str)
        return text


def follows(text: str) -> bool:
    """Whether a text is JSON that validates against SCHEMA."""
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(text))


PAIR = {"a": {"type": "integer", "maximum": 9}, "b": {"type": "boolean"}}
PAIRS: dict[str, Any] = {
    "type": "object",
    "properties": PAIR,
    "required": ["a", "b"],
    "additionalProperties": False,
}
COMPACT = {"structured_outputs": {"disable_any_whitespace": True}}
BREAKS = {"guided_whitespace_pattern": "\\n"}
FORM = {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": PAIRS}}}


@pytest.mark.parametrize(
    ("asked", "blanks"),
    [
        ({**FORM, **COMPACT}, {""}),
        ({"guided_json": PAIRS, **COMPACT}, {""}),
        ({**FORM, **BREAKS}, {"", "\n"}),
        ({"guided_json": PAIRS, **BREAKS}, {"", "\n"}),
        ({"structured_outputs": {"json": PAIRS}, **BREAKS}, {"", "\n"}),
        ({**FORM, "structured_outputs": {"whitespace_pattern": "\\n"}}, {"", "\n"}),
        (FORM, {"", " "}),
    ],
)
def test_whitespace_is_chosen_by_any_name_for_a_form_of_any_name(
    asked: dict[str, Any], blanks: set[str]
) -> None:
    texts = [answer({**asked, "seed": seed}) for seed in range(4)]
    found = {char for text in texts for char in text if char.isspace()}
    assert found <= blanks
    assert (found == set()) == (blanks == {""})


SHAPED = {"name": "shoe", "schema": SCHEMA, "strict": True, "description": "a shoe"}


@pytest.mark.parametrize(
    "asked",
    [
        {"response_format": {"type": "json_schema", "json_schema": SHAPED}},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA), "disable_any_whitespace": True}},
        {"guided_json": SCHEMA},
        {"guided_json": SCHEMA, "guided_decoding_backend": "xgrammar"},
        {"response_format": {"type": "text"}, "structured_outputs": {"json": SCHEMA}},
    ],
)
def test_an_answer_follows_the_schema(asked: dict[str, Any]) -> None:
    assert follows(answer(asked))


@pytest.mark.parametrize(
    ("asked", "texts"),
    [
        ({"structured_outputs": {"choice": ["yes", "no"]}}, {"yes", "no"}),
        ({"guided_choice": ["yes", "no"]}, {"yes", "no"}),
        ({"structured_outputs": {"regex": "(a|b){3}c"}}, None),
        ({"guided_regex": "(a|b){3}c"}, None),
        ({"structured_outputs": {"grammar": 'start: "left" | "right"'}}, {"left", "right"}),
        ({"guided_grammar": 'root ::= "left" | "right"\n'}, {"left", "right"}),
    ],
)
def test_an_answer_is_of_the_asked_form(asked: dict[str, Any], texts: set[str] | None) -> None:
    text = answer(asked)
    assert text in texts if texts else (len(text) == 4 and set(text[:3]) <= set("ab"))


@pytest.mark.parametrize(
    "asked",
    [
        {"response_format": TAG},
        {"response_format": {"type": "structural_tag", "format": FORMAT}},
        {"structured_outputs": {"structural_tag": json.dumps(TAG)}},
    ],
)
def test_tagged_parts_follow_their_schema(asked: dict[str, Any]) -> None:
    text = answer(asked).strip()
    assert text.startswith("<f>")
    assert text.endswith("</f>")
    assert follows(text[3:-4])


def test_completions_follow_schemas_too() -> None:
    with World() as world, world.http() as http:
        body = {"prompt": ["fox", "dog"], "guided_json": SCHEMA, "max_tokens": 90, "seed": 3}
        choices = http.post("/v1/completions", json=body).json()["choices"]
        assert [follows(choice["text"]) for choice in choices] == [True, True]


@pytest.mark.parametrize("number", ["0.1000000000000000055", "1e400", "9007199254740993"])
@pytest.mark.parametrize("field", ["response_format", "structured_outputs", "tools"])
def test_no_number_of_a_schema_is_changed_on_its_way(field: str, number: str) -> None:
    schema = '{"type": "object", "properties": {"a": {"const": NUMBER}}, "required": ["a"]}'
    function = '{"name": "f", "strict": true, "parameters": SCHEMA}'
    forms = {
        "response_format": '{"type": "json_schema",'
        ' "json_schema": {"name": "a", "schema": SCHEMA}}',
        "structured_outputs": '{"json": SCHEMA}',
        "tools": f'[{{"type": "function", "function": {function}}}]',
    }
    form = forms[field].replace("SCHEMA", schema).replace("NUMBER", number)
    body = json.dumps(CHAT)[:-1] + f', "{field}": {form}}}'
    headers = {"content-type": "application/json"}
    with World() as world, world.http() as http:
        response = http.post("/v1/chat/completions", content=body, headers=headers)
        assert response.status_code == 400, response.text
        assert world.runner.plans == []


def test_a_schema_of_many_optional_properties_is_served() -> None:
    body = {**CHAT, "guided_json": properties(700), "max_tokens": 20}
    with World() as world, world.http() as http:
        assert http.post("/v1/chat/completions", json=body).status_code == 200


CONTRADICTION: dict[str, Any] = {"allowed_token_ids": [5], "max_tokens": 20, "seed": 1}
FORMATS: dict[str, dict[str, Any]] = {
    "response_format": {"response_format": {"type": "json_object"}},
    "guided_json": {"guided_json": SCHEMA},
    "structured_outputs.choice": {"structured_outputs": {"choice": ["yes", "no"]}},
}


@pytest.mark.parametrize("param", FORMATS)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_form_that_allows_none_of_the_allowed_tokens_is_the_clients_error(
    path: str, param: str
) -> None:
    text = {"prompt": "fox"} if path == "/v1/completions" else {"messages": CHAT["messages"]}
    body = {**text, **CONTRADICTION, **FORMATS[param]}
    with World() as world, world.http() as http:
        response = http.post(path, json=body)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert f"{param} and allowed_token_ids allow no token" in error["message"]
        # A stream has begun with 200; its last event is the same error.
        lines = http.post(path, json={**body, "stream": True}).text.split("\n\n")
        last = next(line for line in lines if "error" in line)
        assert json.loads(last.removeprefix("data: "))["error"] == error
        assert http.post(path, json={**text, "max_tokens": 3}).status_code == 200


@pytest.mark.parametrize(
    ("asked", "param", "words"),
    [
        ({"response_format": {"type": "xml"}}, "response_format", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
            "required",
        ),
        (
            {"response_format": {"type": "json_object", "schema": {}}},
            "response_format.schema",
            "there is no field",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"not": {}}},
                }
            },
            "response_format",
            "response_format uses keywords that are not supported: not",
        ),
        ({"structured_outputs": {"json": {"not": {}}}}, "structured_outputs.json", "not"),
        ({"structured_outputs": {}}, "structured_outputs", "exactly one of"),
        ({"structured_outputs": {"jso": {}}}, "structured_outputs.jso", "there is no field"),
        (
            {"structured_outputs": {"regex": "a", "whitespace_pattern": 1}},
            "structured_outputs.whitespace_pattern",
            "a string",
        ),
        ({"guided_regex": "[a"}, "guided_regex", "guided_regex is not a valid grammar"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "structured_outputs", "exactly one of"),
        ({"guided_regex": "a", "structured_outputs": {"regex": "a"}}, "guided_regex", "one form"),
        ({"regex": "a"}, "regex", "use structured_outputs"),
        (
            {**FORM, "structured_outputs": {"whitespace_pattern": "("}},
            "structured_outputs.whitespace_pattern",
            "structured_outputs.whitespace_pattern is not a valid grammar",
        ),
        (
            {**FORM, "guided_whitespace_pattern": "("},
            "guided_whitespace_pattern",
            "guided_whitespace_pattern is not a valid grammar",
        ),
        (BREAKS, "guided_whitespace_pattern", "only be given with a form"),
        (COMPACT, "structured_outputs", "exactly one of"),
        ({"guided_regex": "a", **BREAKS}, "guided_whitespace_pattern", "is an option of JSON"),
        ({"whitespace_pattern": " "}, "whitespace_pattern", "use structured_outputs"),
        ({"guided_json": {"const": 9007199254740993}}, "guided_json", "numbers in const"),
        ({"guided_json": properties(1001)}, "guided_json", "at most 1000 optional properties"),
    ],
)
def test_what_cannot_be_followed_is_refused_before_anything_runs(
    asked: dict[str, Any], param: str, words: str
) -> None:
    with World() as world, world.http() as http:
        response = http.post("/v1/chat/completions", json={**CHAT, **asked})
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["param"] == param
        assert words in error["message"]
        assert world.runner.plans == []
