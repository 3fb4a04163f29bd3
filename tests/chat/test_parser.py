"""Reasoning and tool calls are found in what models write, however it comes; nothing is lost."""

import json
import re
import time
from itertools import product
from typing import Any

import pydantic_core
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxserve.chat import reasoning_parsers, tool_parsers
from jaxserve.chat.harmony import Harmony
from jaxserve.chat.parser import AnswerFormat, AnswerParser
from jaxserve.chat.pieces import Kind
from jaxserve.chat.source import MAX_SPACE
from jaxserve.chat.syntax.json_call import MAX_BUFFERED_CHARS
from jaxserve.chat.syntax.json_value import is_object
from jaxserve.errors import ConfigError
from tests.chat.answers import ANSWERS, SCHEMAS, Found, form_of, found_in, parse

DSML = "｜DSML｜"
STRING = {"type": "string"}
CODED = "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>"
FORMS = {
    **{name: form_of(name) for name in tool_parsers.names()},
    **{f"{name} reasoning": form_of(None, name) for name in reasoning_parsers.names()},
    "gpt_oss whole": form_of("gpt_oss", "gpt_oss"),
    "glm whole": form_of("glm", "glm"),
    "qwen3 whole": form_of("hermes", "qwen3"),
}
# Parts of calls besides their markers, in valid and invalid combinations.
FRAGMENTS = [
    *(
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        '"',
        "'",
        "\\",
        ",",
        ":",
        "=",
        ">",
        "<",
        ";",
        " ",
        "\n",
        "\\u00",
    ),
    *('{"name": "weather", "arguments": ', '{"arguments": {"a": 1}, "name": "now"', '"id": "x"'),
    *(
        '{"city": "Oslo"}',
        "null",
        "weather",
        "weather(city=",
        "now()",
        "function",
        "functions.now:0",
    ),
    *(
        "```json",
        "[ARGS]",
        "[CALL_ID]",
        "<parameter=city>",
        "</parameter>",
        "</function>",
        "to=now",
    ),
    *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<｜tool▁sep｜>", "<response>"),
    *("<|tool_call_argument_begin|>", "analysis", "final", "<function=", "</response>"),
    '<｜DSML｜invoke name="now">',
]


def markers_of(form: AnswerFormat) -> tuple[str, ...]:
    return tuple(sorted(form.markers))


def cut(text: str, places: list[int]) -> list[str]:
    """A text in pieces that end at these places."""
    stops = sorted({place % (len(text) + 1) for place in places} | {len(text)})
    return [text[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]


@st.composite
def rubbish(draw: st.DrawFn) -> tuple[str, str]:
    """A format's name, and a text of its markers, of other fragments and of words."""
    name = draw(st.sampled_from(sorted(FORMS)))
    word = st.integers(0, 99).map("w{}w".format)
    part = st.sampled_from(markers_of(FORMS[name])) | st.sampled_from(FRAGMENTS) | word
    return name, "".join(draw(st.lists(part, max_size=30)))


@pytest.mark.parametrize("name", ANSWERS)
def test_finds_what_a_model_wrote(name: str) -> None:
    answer = ANSWERS[name]
    found = parse(form_of(answer.tools, answer.reasoning), [answer.text], is_open=answer.is_open)
    calls = tuple((name, json.loads(arguments)) for name, arguments in found.calls)
    assert (found.content, found.reasoning, calls) == (
        answer.content,
        answer.thought,
        answer.calls,
    )


def test_every_parser_has_an_answer_to_read() -> None:
    answers = ANSWERS.values()
    assert {answer.tools for answer in answers} >= set(tool_parsers.names())
    assert {answer.reasoning for answer in answers} >= set(reasoning_parsers.names())


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_the_same_in_any_two_pieces(name: str) -> None:
    answer = ANSWERS[name]
    form = form_of(answer.tools, answer.reasoning)
    whole = parse(form, [answer.text], is_open=answer.is_open)
    assert parse(form, list(answer.text), is_open=answer.is_open) == whole
    for place in range(1, len(answer.text)):
        pieces = cut(answer.text, [place])
        assert parse(form, pieces, is_open=answer.is_open) == whole


@settings(max_examples=400, deadline=None)
@example(("glm", "<tool_call>w0w<arg_key>"), [], None)
@given(rubbish(), st.lists(st.integers(0, 1000), max_size=12), st.sampled_from([None, True]))
def test_any_text_in_any_pieces_gives_the_same_and_loses_nothing(
    named: tuple[str, str], places: list[int], is_open: bool | None
) -> None:
    name, text = named
    whole = parse(FORMS[name], [text], is_open=is_open)
    assert parse(FORMS[name], cut(text, places), is_open=is_open) == whole
    assert parse(FORMS[name], list(text), is_open=is_open) == whole
    num_whole = {
        num_whole_calls(FORMS[name], pieces, is_open=is_open)
        for pieces in ([text], cut(text, places), list(text))
    }
    assert len(num_whole) == 1
    assert words(everything(whole)) == words(text)


@pytest.mark.parametrize("name", FORMS)
def test_no_marker_holds_another_but_at_its_end(name: str) -> None:
    """Else which of the two is found could depend on what has come."""
    for one, other in product(FORMS[name].markers, repeat=2):
        assert one == other or one not in other[:-1] or other.endswith(one)


@pytest.mark.parametrize("name", FORMS)
def test_text_is_held_back_no_longer_than_it_can_be_a_call(name: str) -> None:
    text = "".join(
        f"{marker}{fragment}" for marker in markers_of(FORMS[name]) for fragment in " {[<"
    )
    parser = AnswerParser(FORMS[name], schemas={})
    given_out = sum(len(piece.text) for piece in parser.feed(text + "and so on " * 2000))
    assert given_out > 20000 - MAX_BUFFERED_CHARS - MAX_SPACE


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("end", ["", "{", '{"arguments": "', '{"name": "f", "arguments": {"a": "'])
def test_time_grows_as_the_text_does(name: str, end: str) -> None:
    form = FORMS[name]
    markers = markers_of(form)

    def seconds(times: int) -> float:
        text = "".join((*markers, end, " ", "\n\n", "<<")) * times
        start_s = time.process_time()
        parser = AnswerParser(form, schemas={})
        for place in range(0, len(text), 3):
            parser.feed(text[place : place + 3])
        parser.finish()
        return (time.process_time() - start_s) / len(text)

    few = min(seconds(4) for _ in range(3))
    assert min(seconds(100) for _ in range(2)) < 8 * few


def test_special_tokens_that_are_no_markup_are_left_out() -> None:
    text = '<s>Hi<|eot|> <tool_call>{"name": "now"}</tool_call><|eot|>there<|eot|>'
    settings = {"dropped": ("<|eot|>", "<s>", "<tool_call>")}
    found = parse(form_of("hermes"), [text], **settings)
    assert found == parse(form_of("hermes"), list(text), **settings)
    assert found == Found("Hithere", "", (("now", "{}"),), ("",))


def test_the_name_of_a_call_comes_before_its_arguments_are_there() -> None:
    parser = AnswerParser(form_of("hermes"))
    pieces = parser.feed('<tool_call>{"name": "weather", "arguments": {"city": "Os')
    assert [(piece.kind, piece.text) for piece in pieces] == [
        (Kind.CALL, "weather"),
        (Kind.ARGUMENTS, '{"city": "Os'),
    ]


def test_a_string_between_tags_comes_as_it_is_written() -> None:
    parser = AnswerParser(form_of("qwen3_coder"), schemas={"f": {"properties": {"a": STRING}}})
    assert parser.feed("<function=f>\n<parameter=a>\nsome ")[-1].text == '{"a": "some '


def test_a_call_cut_short_has_the_arguments_it_has() -> None:
    found = parse(form_of("hermes"), ['<tool_call>{"name": "f", "arguments": {"city": "Os'])
    assert found.calls == (("f", '{"city": "Os'),)


def test_line_breaks_in_strings_become_json() -> None:
    found = parse(form_of("hermes"), ['<tool_call>{"name": "f", "arguments": {"a": "b\nc"}}'])
    assert json.loads(found.calls[0][1]) == {"a": "b\nc"}


def test_an_id_of_the_models_own_is_kept() -> None:
    assert parse(form_of("kimi_k2"), [ANSWERS["kimi_k2"].text]).ids == (
        "functions.weather:0",
        "functions.now:1",
    )


@pytest.mark.parametrize(
    ("prompt", "is_open"),
    [
        ("<|im_start|>assistant\n", None),
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("What is <think>?<|im_end|>\n<|im_start|>assistant\n", None),
    ],
)
def test_the_prompt_tells_whether_reasoning_is_under_way(prompt: str, is_open: bool | None) -> None:
    form = reasoning_parsers.reasoning_format("qwen3")
    assert not isinstance(form, Harmony)
    assert form.is_opened_by(prompt) is is_open


@pytest.mark.parametrize("find", [tool_parsers.tool_format, reasoning_parsers.reasoning_format])
def test_a_name_that_is_none_is_refused_with_those_there_are(find: Any) -> None:
    with pytest.raises(ConfigError, match=r"must be one of .*gpt_oss.*, got '\.\./x'"):
        find("../x")


@pytest.mark.parametrize("alias", tool_parsers.ALIASES)
def test_names_of_other_engines_are_understood(alias: str) -> None:
    assert tool_parsers.tool_format(alias) is not None


def num_whole_calls(form: AnswerFormat, pieces: list[str], *, is_open: bool | None) -> int:
    parser = AnswerParser(form, schemas=SCHEMAS, is_open=is_open)
    for piece in pieces:
        parser.feed(piece)
    parser.finish()
    return parser.num_whole_calls


def everything(found: Found) -> str:
    return " ".join([found.content, found.reasoning, *found.ids, *map(" ".join, found.calls)])


def words(text: str) -> list[str]:
    return sorted(re.findall(r"w\d+w", text))


@pytest.mark.parametrize("name", ANSWERS)
def test_a_call_cut_anywhere_has_as_much_of_its_arguments_as_came(name: str) -> None:
    answer = ANSWERS[name]
    form = form_of(answer.tools, answer.reasoning)
    for stop in range(len(answer.text)):
        text = answer.text[:stop]
        parser = AnswerParser(form, schemas=SCHEMAS, is_open=answer.is_open)
        pieces = parser.feed(text) + parser.finish()
        assert parse(form, list(text), is_open=answer.is_open) == found_in(pieces)
        calls = found_in(pieces).calls
        whole = [call for call in calls if is_object(call[1])]
        assert parser.num_whole_calls == len(whole)
        assert len(whole) >= len(calls) - 1
        for (_, arguments), (_, expected) in zip(calls, answer.calls, strict=False):
            came = pydantic_core.from_json(arguments or "{}", allow_partial="trailing-strings")
            assert is_beginning(came, expected), (text, arguments)
            assert not is_object(arguments) or came == expected, (text, arguments)


def is_beginning(came: Any, expected: Any) -> bool:
    """Whether a value is another one as far as it came."""
    match came, expected:
        case dict(), dict():
            return all(key in expected and is_beginning(came[key], expected[key]) for key in came)
        case list(), list():
            return all(map(is_beginning, came, expected))
        case str(), _:
            # Python's words come as text as long as they are not whole.
            return str(expected).startswith(came)
        case int() | float(), int() | float():
            return True  # digits may be missing
    return bool(came == expected)


@pytest.mark.parametrize(
    ("name", "text", "content"),
    [
        ("qwen3_coder", f"{CODED}\n</func", ""),
        ("qwen3_coder", f"{CODED}\n</function>\n</tool_c", ""),
        ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</to', ""),
        ("hermes", "I use <to", "I use <to"),
    ],
)
def test_markup_behind_a_call_is_no_content_where_it_is_cut(
    name: str, text: str, content: str
) -> None:
    found = parse(form_of(name), [text])
    assert (found.content, len(found.calls)) == (content, not content)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "qwen3_coder",
            "<function=weather>\n<parameter=city>\nOslo\n<parameter=days>\n3\n</parameter>\n</function>",
            {"city": "Oslo", "days": 3},
        ),
        (
            "qwen3_coder",
            "<function=weather>\n<parameter=days>\n3\n<parameter=city>\nOslo\n</function>\n</tool_call>",
            {"city": "Oslo", "days": 3},
        ),
        (
            "seed_oss",
            "<function=weather>\n<parameter=city>Oslo<parameter=days>3</function>",
            {"city": "Oslo", "days": 3},
        ),
        (
            "glm",
            "<tool_call>weather<arg_key>city</arg_key><arg_value>Oslo\n<arg_key>days<arg_value>3</tool_call>",
            {"city": "Oslo", "days": 3},
        ),
        (
            "glm",
            "<tool_call>weather\n<arg_key>city<arg_value>Oslo</arg_value></tool_call>",
            {"city": "Oslo"},
        ),
        (
            "deepseek_v32",
            f'<{DSML}invoke name="weather"><{DSML}parameter name="city">Oslo</{DSML}invoke>',
            {"city": "Oslo"},
        ),
    ],
)
def test_a_value_whose_end_is_missing_does_not_swallow_what_follows(
    name: str, text: str, expected: dict[str, Any]
) -> None:
    found = parse(form_of(name), [text + " Done."])
    assert [json.loads(arguments) for _, arguments in found.calls] == [expected]
    assert parse(form_of(name), list(text + " Done.")) == found
    assert found.content.endswith("Done.")


def test_a_message_of_reasoning_that_the_prompt_has_begun_goes_on() -> None:
    text = " is 4.<|end|><|start|>assistant<|channel|>final<|message|>4"
    form = form_of("gpt_oss", "gpt_oss")
    for pieces in ([text], list(text)):
        found = parse(form, pieces, is_open=True)
        assert (found.reasoning, found.content) == (" is 4.", "4")
