"""Tools to call: their OpenAI-style schemas, questions that want them, calls and results."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from examples.tiny_model.exchange import Message
from examples.tiny_model.facts import COUNTRIES, read_data
from examples.tiny_model.patterns import expand
from examples.tiny_model.words import (
    CITIES,
    COLORS,
    FOODS,
    LANGUAGES,
    NAMES,
    ROOMS,
    SONGS,
    TOPICS,
    WORDS,
    invented_word,
)  # fmt: skip

type Arguments = dict[str, str | int]

_TIMES = tuple(f"{hour}:{minute}" for hour in range(6, 23) for minute in ("00", "15", "30"))
_VALUES: dict[str, Sequence[str | int]] = {
    "city": CITIES,
    "other_city": CITIES,
    "name": NAMES,
    "topic": TOPICS,
    "language": LANGUAGES,
    "room": ROOMS,
    "song": SONGS,
    "word": WORDS,
    "food": FOODS,
    "color": COLORS,
    "time": _TIMES,
    "country": COUNTRIES,
    "number": range(1, 60),
    "other_number": range(1, 100),
    "symbol": ("AAPL", "GOOG", "MSFT", "NVDA", "AMD", "TSLA", "IBM", "META", "INTC", "ORCL"),
    "currency": ("euros", "dollars", "pounds", "yen", "francs"),
    "other_currency": ("euros", "dollars", "pounds", "yen", "rupees"),
    "day": ("today", "tomorrow", "Monday", "Tuesday", "Friday", "Sunday"),
}


@dataclass(frozen=True, slots=True)
class ToolKind:
    """A kind of tool: patterns of its name, its parameters and the questions that want it.

    `parameters` maps a pattern of the parameter's name to a key of the value lists; the questions
    speak of those keys.
    """

    name: str
    description: str
    parameters: dict[str, str]
    questions: tuple[str, ...]
    results: tuple[str, ...] = ("done", "ok", "success")


_KINDS = read_data("tools")
KINDS = tuple(ToolKind(**kind) for kind in _KINDS["kinds"])
HELD_OUT_KINDS = tuple(ToolKind(**kind) for kind in _KINDS["held_out"])
_VERBS = (
    "get",
    "find",
    "check",
    "open",
    "show",
    "start",
    "stop",
    "read",
    "list",
    "update",
    "delete",
    "create",
)


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool as it is offered in a request."""

    name: str
    description: str
    parameters: dict[str, str]  # parameter name -> key of the value lists
    questions: tuple[str, ...]
    results: tuple[str, ...]

    def schema(self, *, terse: bool) -> Message:
        """Return the tool as the `tools` field of a chat request has it."""
        properties: dict[str, dict[str, str]] = {}
        for name, source in self.parameters.items():
            kind = "integer" if isinstance(_VALUES[source], range) else "string"
            properties[name] = {"type": kind}
            if not terse:
                properties[name]["description"] = f"The {name.replace('_', ' ')}"
        parameters = {"type": "object", "properties": properties, "required": list(self.parameters)}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}

    def ask(self, rng: random.Random) -> tuple[str, Arguments]:
        """Draw a question that wants this tool, and the arguments of the right call."""
        values = _draw_values(rng)
        question = expand(rng.choice(self.questions), rng).format(**values)
        return question, {name: values[source] for name, source in self.parameters.items()}

    def result(self, rng: random.Random) -> str:
        """Draw what the tool might return: plain text or a JSON object."""
        return expand(rng.choice(self.results), rng).format(**_draw_values(rng))


def _draw_values(rng: random.Random) -> Arguments:
    return {source: rng.choice(values) for source, values in _VALUES.items()}


def _invented_kind(rng: random.Random) -> ToolKind:
    """Make up a tool from a verb and a noun, so that names are read and not remembered."""
    verb = rng.choice(_VERBS)
    noun, other = (rng.choice((rng.choice(WORDS), invented_word(rng))) for _ in range(2))
    source = rng.choice(
        ("city", "name", "topic", "word", "color", "number", "country", "food", "room", "day")
    )
    name = rng.choice((f"{verb}_{noun}", f"{verb}_{noun}", f"{noun}_{other}", noun))
    description = f"{verb.title()} the {noun}"
    link = rng.choice(("for", "of", "in", "with"))
    key = rng.choice((source, source, other))
    return ToolKind(
        name,
        description,
        {key: source},
        (f"{verb} the {noun} {link} {{{source}}}", f"{verb} {noun} {link} {{{source}}}"),
    )


def draw_tools(rng: random.Random, count: int, *, held_out: bool) -> list[Tool]:
    """Draw tools of different kinds; if `held_out`, the first is of a kind never trained on."""
    kinds: list[ToolKind] = [rng.choice(HELD_OUT_KINDS)] if held_out else []
    while len(kinds) < count:
        kind = _invented_kind(rng) if rng.random() < 0.4 else rng.choice(KINDS)
        if kind not in kinds:
            kinds.append(kind)
    return [
        Tool(
            name=expand(kind.name, rng),
            description=expand(kind.description, rng) + rng.choice(("", ".")),
            parameters={expand(name, rng): source for name, source in kind.parameters.items()},
            questions=kind.questions,
            results=kind.results,
        )
        for kind in kinds
    ]


def call_message(calls: list[tuple[str, Arguments]]) -> Message:
    """Return the assistant's message that calls tools."""
    functions = [{"name": name, "arguments": arguments} for name, arguments in calls]
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": function} for function in functions],
    }


def report(results: list[str]) -> str:
    """Say in a sentence what the tools returned."""
    parts: list[str] = []
    for result in results:
        try:
            value = json.loads(result)
        except json.JSONDecodeError:
            value = result
        if isinstance(value, dict):
            parts.append(", ".join(f"{key} {item}" for key, item in value.items()))
        else:
            parts.append(result)
    return f"Here is the result: {' and '.join(parts)}."


def parsed_calls(text: str) -> list[tuple[str, Arguments]]:
    """Return the calls in an answer; none unless the whole answer is well-formed calls."""
    blocks = re.findall(r"<tool_call>\n(.*?)\n</tool_call>", text, flags=re.DOTALL)
    if "\n".join(f"<tool_call>\n{block}\n</tool_call>" for block in blocks) != text:
        return []
    calls: list[tuple[str, Arguments]] = []
    for block in blocks:
        try:
            call = json.loads(block)
        except json.JSONDecodeError:
            return []
        if not isinstance(call, dict) or set(call) != {"name", "arguments"}:
            return []
        calls.append((call["name"], call["arguments"]))
    return calls
