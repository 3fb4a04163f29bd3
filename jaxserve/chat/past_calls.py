"""Tool calls of earlier turns, with arguments in the form that the chat template takes.

Clients send arguments as text. Most templates want an object, which they serialize themselves; some
want the text. Text that is not a JSON object, such as the arguments of a truncated call, goes into
the prompt unchanged. A template that takes only objects gets the complete part of the object and
the string at its end, so that it writes the text that the model wrote.
"""

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import pydantic_core
from jinja2 import TemplateError

from jaxserve.errors import InvalidRequestError

type Message = Mapping[str, Any]
type Apply = Callable[[Sequence[Message]], str]

# Errors that a template can raise for messages it does not support.
RENDER_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
MAX_SHOWN_CHARS = 60
ARGUMENTS = "messages[{}].tool_calls[{}].function.arguments"


def render_calls(messages: Sequence[Message], apply: Apply) -> str:
    """Return the prompt that `apply` renders from messages.

    Arguments are text, or objects, which are passed on unchanged. Raises the errors of `apply`, and
    InvalidRequestError naming the arguments if the template takes only objects and the text is not
    a JSON object or the beginning of one.
    """
    calls = _Calls(messages)
    if not calls.texts:
        return apply(messages)
    try:
        prompt = apply(calls.filled(calls.value))
        lost = calls.words - calls.words_in(prompt)
        # A template may also leave out all calls.
        if not lost or lost.isdisjoint(calls.words_in(apply(calls.filled(calls.mapping)))):
            return calls.with_texts(prompt)
    except RENDER_ERRORS:
        # Either the template takes only text, or the error has another cause.
        texts_only = _tried(apply, calls.filled(calls.word))
        if texts_only is not None:
            return calls.with_texts(texts_only)
        if not calls.words or _tried(apply, calls.filled(calls.mapping)) is None:
            raise
    return apply(calls.filled(calls.part))


class _Calls:
    """Calls whose arguments are text, by their number in the conversation.

    Text that is not an object is rendered as a random placeholder and substituted afterwards,
    because templates may pass arguments through a JSON filter, which would quote it.
    """

    def __init__(self, messages: Sequence[Message]) -> None:
        self._messages = messages
        self._nonce = uuid.uuid4().hex
        self._pattern = re.compile(rf'"{self._nonce}x(\d+)x"|{self._nonce}x(\d+)x')
        self._places: list[str] = []
        self.texts: list[str] = []
        for index, message in enumerate(messages):
            for number, call in enumerate(message.get("tool_calls") or ()):
                if isinstance(call["function"]["arguments"], str):
                    self._places.append(ARGUMENTS.format(index, number))
                    self.texts.append(call["function"]["arguments"])
        self._objects = [_object(text) for text in self.texts]
        self.words = {number for number, found in enumerate(self._objects) if found is None}

    def word(self, number: int) -> object:
        """Return the placeholder for the text of a call's arguments."""
        return f"{self._nonce}x{number}x"

    def value(self, number: int) -> object:
        """Return a call's arguments as an object, or the placeholder for their text."""
        found = self._objects[number]
        return self.word(number) if found is None else found

    def mapping(self, number: int) -> object:
        """Return a call's arguments as an object; if they are not one, a substitute object."""
        found = self._objects[number]
        return {self.word(number): self.word(number)} if found is None else found

    def part(self, number: int) -> object:
        """Return the complete part of a call's arguments as an object.

        Raises InvalidRequestError if the text is not the beginning of an object.
        """
        found = self._objects[number]
        if found is None:
            found = _beginning(self.texts[number])
        if found is None:
            raise self._refusal(number)
        return found

    def filled(self, form: Callable[[int], object]) -> Sequence[Message]:
        """Return the messages with each call's arguments replaced."""
        numbers = iter(range(len(self.texts)))

        def call_with(call: Mapping[str, Any]) -> Mapping[str, Any]:
            function = call["function"]
            if not isinstance(function["arguments"], str):
                return call
            return {**call, "function": {**function, "arguments": form(next(numbers))}}

        return [
            {**message, "tool_calls": [call_with(call) for call in message["tool_calls"]]}
            if message.get("tool_calls")
            else message
            for message in self._messages
        ]

    def words_in(self, prompt: str) -> set[int]:
        """Return the calls whose placeholders are in a prompt."""
        return {int(match[1] or match[2]) for match in self._pattern.finditer(prompt)}

    def with_texts(self, prompt: str) -> str:
        """Return a prompt with placeholders replaced by the texts of arguments."""
        return self._pattern.sub(lambda match: self.texts[int(match[1] or match[2])], prompt)

    def _refusal(self, number: int) -> InvalidRequestError:
        """Return the error for arguments that the template does not take."""
        place, text = self._places[number], self.texts[number]
        shown = text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "..."
        return InvalidRequestError(
            f"{place}: this model's chat template takes the arguments of a tool call only as the"
            f" JSON of an object, got {shown!r}",
            param=place,
        )


def _tried(apply: Apply, messages: Sequence[Message]) -> str | None:
    """Return the prompt of messages; None if the template raises."""
    try:
        return apply(messages)
    except RENDER_ERRORS:
        return None


def _object(text: str) -> dict[str, Any] | None:
    """Parse a JSON object; empty text is an empty object."""
    try:
        value = msgspec.json.decode(text) if text else {}
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _beginning(text: str) -> dict[str, Any] | None:
    """Return the complete part of the object that a text begins."""
    try:
        value = pydantic_core.from_json(text, allow_inf_nan=False, allow_partial="trailing-strings")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
