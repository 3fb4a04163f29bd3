"""Example outputs of models in each format, with their parsed contents."""

from dataclasses import dataclass
from typing import Any

from jaxserve.chat import reasoning_parsers, tool_parsers
from jaxserve.chat.parser import AnswerFormat, AnswerParser
from jaxserve.chat.pieces import Kind, Piece

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "units": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "hours": {"type": "array", "items": {"type": "integer"}},
    },
}
SCHEMAS = {"weather": WEATHER, "now": {"type": "object", "properties": {}}}


@dataclass(frozen=True)
class Found:
    """Results of a parser: content, reasoning, and calls as (name, arguments as text)."""

    content: str
    reasoning: str
    calls: tuple[tuple[str, str], ...]
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer of a model, and what is to be found in it; `calls` with arguments as values."""

    text: str
    tools: str | None = None
    reasoning: str | None = None
    is_open: bool | None = None
    content: str = ""
    thought: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()


def form_of(tools: str | None, reasoning: str | None = None) -> AnswerFormat:
    """The format of two parsers' names."""
    return AnswerFormat(
        tools=None if tools is None else tool_parsers.tool_format(tools),
        reasoning=None if reasoning is None else reasoning_parsers.reasoning_format(reasoning),
    )


def parse(form: AnswerFormat, pieces: list[str], **settings: Any) -> Found:
    """Parse a text that arrives in pieces."""
    parser = AnswerParser(form, schemas=SCHEMAS, **settings)
    found: list[Piece] = []
    for piece in pieces:
        found += parser.feed(piece)
    return found_in(found + parser.finish())


def found_in(found: list[Piece]) -> Found:
    """Combine the pieces of an answer."""
    texts = {Kind.CONTENT: "", Kind.REASONING: ""}
    calls: list[tuple[str, str]] = []
    ids: list[str] = []
    for kind, text, call_id in found:
        if kind is Kind.CALL:
            calls.append((text, ""))
            ids.append(call_id)
        elif kind is Kind.ARGUMENTS:
            calls[-1] = (calls[-1][0], calls[-1][1] + text)
        else:
            texts[kind] += text
    return Found(texts[Kind.CONTENT], texts[Kind.REASONING], tuple(calls), tuple(ids))


OSLO = {"city": "Oslo", "days": 3}
BOTH: tuple[tuple[str, dict[str, Any]], ...] = (("weather", OSLO), ("now", {}))
HARMONY_CALL = (
    "<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
    '{"city": "Oslo", "days": 3}<|call|>'
)

ANSWERS = {
    "apriel": Answer(
        tools="apriel",
        text='Sure.\n<tool_calls>[{"name": "weather", "arguments": {"city": "Oslo", "days": 3}},'
        ' {"name": "now", "arguments": {}}]</tool_calls>',
        content="Sure.",
        calls=BOTH,
    ),
    "deepseek_r1": Answer(
        reasoning="deepseek_r1",
        text="Oslo is north.\n</think>\n\nIt is cold.",
        thought="Oslo is north.",
        content="It is cold.",
    ),
    "deepseek_r1 with its first tag": Answer(
        reasoning="deepseek_r1",
        text="<think>\nOslo is north.\n</think>\n\nIt is cold.",
        thought="Oslo is north.",
        content="It is cold.",
    ),
    "deepseek_v3": Answer(
        tools="deepseek_v3",
        text="<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        '{"city": "Oslo", "days": 3}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function'
        "<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        calls=BOTH,
    ),
    "deepseek_v31": Answer(
        tools="deepseek_v31",
        reasoning="qwen3",
        is_open=True,
        text="I look it up.</think>Wait.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather"
        '<｜tool▁sep｜>{"city": "Oslo", "days": 3}<｜tool▁call▁end｜><｜tool▁call▁begin｜>now'
        "<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        thought="I look it up.",
        content="Wait.",
        calls=BOTH,
    ),
    "deepseek_v32": Answer(
        tools="deepseek_v32",
        text='<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter'
        ' name="city" string="true">Oslo</｜DSML｜parameter>\n<｜DSML｜parameter name="days"'
        ' string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name="now">\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        calls=BOTH,
    ),
    "deepseek_v4": Answer(
        tools="deepseek_v4",
        text='I look.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter'
        ' name="city" string="true">Oslo</｜DSML｜parameter>\n<｜DSML｜parameter name="days"'
        ' string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>',
        content="I look.",
        calls=BOTH[:1],
    ),
    "gigachat3": Answer(
        tools="gigachat3",
        text='<|function_call|>{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}'
        "<|message_sep|>\n\n",
        calls=BOTH[:1],
    ),
    "glm": Answer(
        tools="glm",
        reasoning="glm",
        text="\n<think>They ask of Oslo.</think>\nI look.\n<tool_call>weather\n<arg_key>city"
        "</arg_key>\n<arg_value>Oslo</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3"
        "</arg_value>\n</tool_call>\n<tool_call>now</tool_call>",
        thought="They ask of Oslo.",
        content="I look.",
        calls=BOTH,
    ),
    "glm calls within its reasoning": Answer(
        tools="glm",
        reasoning="glm",
        text="<think>I look.<tool_call>now\n</tool_call>",
        thought="I look.",
        calls=BOTH[1:],
    ),
    "gpt_oss": Answer(
        tools="gpt_oss",
        reasoning="gpt_oss",
        text="<|channel|>analysis<|message|>Look up.<|end|>" + HARMONY_CALL,
        thought="Look up.",
        calls=BOTH[:1],
    ),
    "gpt_oss with a preamble": Answer(
        tools="gpt_oss",
        reasoning="gpt_oss",
        text="<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary"
        "<|message|>I look.<|end|>" + HARMONY_CALL,
        thought="Hm.",
        content="I look.",
        calls=BOTH[:1],
    ),
    "gpt_oss with its recipient first": Answer(
        tools="gpt_oss",
        reasoning="gpt_oss",
        text=" to=functions.now<|channel|>commentary json<|message|>{}<|call|>",
        calls=BOTH[1:],
    ),
    "gpt_oss with an answer": Answer(
        tools="gpt_oss",
        reasoning="gpt_oss",
        text="<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final"
        "<|message|>Cold.<|return|>",
        thought="Easy.",
        content="Cold.",
    ),
    "granite": Answer(
        tools="granite",
        text='<|tool_call|>[{"name": "weather", "arguments": {"city": "Oslo", "days": 3}},'
        ' {"name": "now", "arguments": {}}]',
        calls=BOTH,
    ),
    "granite 3.2 reasons": Answer(
        reasoning="granite",
        text="Here is my thought process:\n\nNorth.\n\nHere is my response:\n\nCold.",
        thought="North.",
        content="Cold.",
    ),
    "granite 3.3 reasons": Answer(
        reasoning="granite",
        text="<think>North.</think><response>Cold.</response>",
        thought="North.",
        content="Cold.",
    ),
    "hermes": Answer(
        tools="hermes",
        text='I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}'
        '\n</tool_call>\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        content="I look.",
        calls=BOTH,
    ),
    "hermes with arguments first": Answer(
        tools="hermes",
        text='<tool_call>\n{"arguments": {"city": "Oslo", "days": 3}, "name": "weather"}\n'
        "</tool_call>",
        calls=BOTH[:1],
    ),
    "hermes without the last brace": Answer(
        tools="hermes",
        text='<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 3}\n'
        "</tool_call>\nDone.",
        content="Done.",
        calls=BOTH[:1],
    ),
    "kimi_k2": Answer(
        tools="kimi_k2",
        reasoning="kimi_k2",
        text="<think>I look.<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
        '<|tool_call_argument_begin|>{"city": "Oslo", "days": 3}<|tool_call_end|>'
        "<|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        thought="I look.",
        calls=BOTH,
    ),
    "lfm2": Answer(
        tools="lfm2",
        text='<|tool_call_start|>[weather(city="Oslo", days=3), now()]<|tool_call_end|>I look.',
        content="I look.",
        calls=BOTH,
    ),
    "llama3_json": Answer(
        tools="llama3_json",
        text='{"name": "weather", "parameters": {"city": "Oslo", "days": 3}}; {"type": "function",'
        ' "name": "now", "parameters": {}}',
        calls=BOTH,
    ),
    "llama3_json with its token": Answer(
        tools="llama3_json",
        text='<|python_tag|>{"name": "weather", "parameters": {"city": "Oslo", "days": 3}}',
        calls=BOTH[:1],
    ),
    "llama3_json answers in JSON": Answer(
        tools="llama3_json",
        text='{"name": "Alice", "age": 3}',
        content='{"name": "Alice", "age": 3}',
    ),
    "mistral": Answer(
        tools="mistral",
        text='I look.[TOOL_CALLS]weather[ARGS]{"city": "Oslo", "days": 3}[TOOL_CALLS]now'
        "[CALL_ID]abcdefghi[ARGS]{}",
        content="I look.",
        calls=BOTH,
    ),
    "mistral reasons": Answer(
        tools="mistral",
        reasoning="mistral",
        text="[THINK]North.[/THINK]Cold.",
        thought="North.",
        content="Cold.",
    ),
    "mistral_json": Answer(
        tools="mistral_json",
        text='[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo", "days": 3}},'
        ' {"name": "now", "arguments": {}, "id": "abcdefghi"}]',
        calls=BOTH,
    ),
    "phi4": Answer(
        tools="phi4",
        text='<|tool_call|>[{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}]'
        "<|/tool_call|>",
        calls=BOTH[:1],
    ),
    "phi4 with arguments as text": Answer(
        tools="phi4",
        text='functools[{"name": "weather", "arguments":'
        ' "{\\"city\\": \\"Oslo\\", \\"days\\": 3}"}]',
        calls=BOTH[:1],
    ),
    "pythonic": Answer(
        tools="pythonic",
        text="[weather(city='Oslo', days=3,), now()]",
        calls=BOTH,
    ),
    "pythonic in all its forms": Answer(
        tools="pythonic",
        text="""[weather(city="O's \\"lo\\n\\x41\\d", hours=[1, (2, -3.5e2,)], units={1: None})]""",
        calls=(
            (
                "weather",
                {"city": "O's \"lo\nA\\d", "hours": [1, [2, -350.0]], "units": {"1": None}},
            ),
        ),
    ),
    "pythonic answers with a list": Answer(
        tools="pythonic", text="[links](there) are fine", content="[links](there) are fine"
    ),
    "qwen3": Answer(
        tools="hermes",
        reasoning="qwen3",
        text="<think>\nNorth.\n</think>\n\nI look.\n<tool_call>\n"
        '{"name": "now", "arguments": {}}\n</tool_call>',
        thought="North.",
        content="I look.",
        calls=BOTH[1:],
    ),
    "qwen3 does not think": Answer(
        tools="hermes",
        reasoning="qwen3",
        is_open=False,
        text="Cold.</think>",
        content="Cold.</think>",
    ),
    "qwen3_coder": Answer(
        tools="qwen3_coder",
        text="I look.\n\n<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n"
        "</function>\n</tool_call>",
        content="I look.",
        calls=BOTH,
    ),
    "qwen3_coder with values of all kinds": Answer(
        tools="qwen3_coder",
        text='<tool_call>\n<function=weather>\n<parameter=city>\n7\n"and"\n\n</parameter>\n<parameter'
        "=hours>\n[1, 2]\n</parameter>\n<parameter=units>\n12\n</parameter>\n<parameter=other>\n"
        "True\n</parameter>\n</function>\n</tool_call>",
        calls=(("weather", {"city": '7\n"and"\n', "hours": [1, 2], "units": "12", "other": True}),),
    ),
    "seed_oss": Answer(
        tools="seed_oss",
        reasoning="seed_oss",
        text="<seed:think>North.</seed:think><seed:tool_call>\n<function=weather>\n<parameter=city>"
        "Oslo</parameter>\n<parameter=days>3</parameter>\n</function>\n</seed:tool_call>",
        thought="North.",
        calls=BOTH[:1],
    ),
}
