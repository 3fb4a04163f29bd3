"""Choose the parsers of a model by probing its chat template."""

import json
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from jaxserve.chat import NONE, reasoning_parsers, tool_parsers
from jaxserve.chat.parser import AnswerFormat, AnswerParser
from jaxserve.chat.pieces import Kind
from jaxserve.chat.template import ChatTemplate
from jaxserve.errors import InvalidRequestError

# A call that distinguishes all formats: one string argument that looks like a number, one number.
NAME = "jaxserve_probe"
ARGUMENTS: dict[str, Any] = {"text": "7", "number": 7}
PROPERTIES = {"text": {"type": "string"}, "number": {"type": "integer"}}
SCHEMA = {"type": "object", "properties": PROPERTIES}
TOOL = {
    "type": "function",
    "function": {"name": NAME, "description": "A probe.", "parameters": SCHEMA},
}
USER = {"role": "user", "content": "hi"}
CALL = {
    "id": "call00000",
    "type": "function",
    "function": {"name": NAME, "arguments": ARGUMENTS},
}


def answer_format(*, tools: str, reasoning: str) -> AnswerFormat:
    """Return the answer format of two parsers by name; `none` leaves that part in the text.

    Raises ConfigError for an unknown name.
    """
    return AnswerFormat(
        tools=None if tools == NONE else tool_parsers.tool_format(tools),
        reasoning=None if reasoning == NONE else reasoning_parsers.reasoning_format(reasoning),
    )


def find_tool_parser(template: ChatTemplate) -> str:
    """Return the name of the parser that reads calls as the template writes them.

    If the template writes no calls, choose by the parsers' signs in its source. Return `none` if no
    parser fits or the template takes no tools.
    """
    if not template.reads_tools:
        return NONE
    texts = written_calls(template)
    readers: list[tuple[int, str]] = []
    signed: list[str] = []
    for name in tool_parsers.names():
        form = tool_parsers.tool_format(name)
        if template.has_all(form.signs):
            left = [_left_by(AnswerFormat(tools=form), text) for text in texts]
            readers += [(num_chars, name) for num_chars in left if num_chars is not None]
            signed += [name] if form.signs else []
    # If several parsers fit, take the one that leaves the least markup in the text.
    return min(readers)[1] if readers else signed[0] if signed else NONE


def find_reasoning_parser(template: ChatTemplate) -> str:
    """Return the parser with the most signs, all of them in the template; else `none`."""
    signed = [
        (len(form.signs), name)
        for name in reasoning_parsers.names()
        if (form := reasoning_parsers.reasoning_format(name)).signs and template.has_all(form.signs)
    ]
    return max(signed)[1] if signed else NONE


def written_calls(template: ChatTemplate) -> list[str]:
    """Return a call as the template writes it in an answer: without the prompt, and with it."""
    assistant = {"role": "assistant", "content": "", "tool_calls": [CALL]}

    def render(messages: Sequence[dict[str, Any]], *, is_prompt: bool) -> str:
        return template.render(messages, tools=[TOOL], add_generation_prompt=is_prompt)

    try:
        whole = render([USER, assistant], is_prompt=False)
        # Some templates open reasoning in the prompt, which the answer then lacks.
        prompts = [render([USER], is_prompt=is_prompt) for is_prompt in (True, False)]
    except InvalidRequestError:
        return []
    return [_beyond(prompt, whole) for prompt in prompts]


def _beyond(prompt: str, whole: str) -> str:
    """Return the rest of a text from where it differs from its prompt."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False))
    return whole[sum(1 for _ in same) :]


def _left_by(form: AnswerFormat, text: str) -> int | None:
    """Return the characters that a format leaves beside the call; None if it finds no call."""
    parser = AnswerParser(form, schemas={NAME: SCHEMA})
    pieces = parser.feed(text) + parser.finish()
    called = [piece.text for piece in pieces if piece.kind is Kind.CALL]
    arguments = "".join(piece.text for piece in pieces if piece.kind is Kind.ARGUMENTS)
    try:
        if called != [NAME] or json.loads(arguments) != ARGUMENTS:
            return None
    except ValueError:
        return None
    return sum(len(piece.text) for piece in pieces if piece.kind is Kind.CONTENT)
