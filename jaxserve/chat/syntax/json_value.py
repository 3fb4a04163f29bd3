"""Incremental reader of JSON values in the text of an answer."""

import json
import re
from contextlib import suppress

import pydantic_core

from jaxserve.chat.source import SPACE, Emit, Reading, Source

IN_STRING = re.compile(r'[^"\\]+')
# JSON between strings and brackets. Commas and colons are valid only inside brackets.
BETWEEN = re.compile(r"[\w+\-.,:\s]+")
SCALAR = re.compile(r"[\w+\-.]+")
# Models write unescaped line breaks into strings, which JSON forbids.
ESCAPES = {code: f"\\u{code:04x}" for code in range(0x20)} | {9: "\\t", 10: "\\n", 13: "\\r"}


def read_value(source: Source, emit: Emit, *, limit: int | None = None) -> Reading[bool]:
    """Emit one JSON value as it is written; return whether it is complete.

    Stop at the end of the text, after `limit` characters, or at a character that JSON allows only
    in strings. Brackets are counted but not matched, and the value is not validated.
    """
    start = source.position
    depth = 0
    while True:
        left = None if limit is None else limit - (source.position - start)
        char = yield from source.peek()
        if not char or left == 0:
            return False
        if char == '"':
            if not (yield from _read_string(source, emit, limit=left)):
                return False
        elif char in "{[":
            depth += 1
            emit(source.skip(1))
        elif char in "}]" and depth:
            depth -= 1
            emit(source.skip(1))
        elif depth:
            text = source.take(BETWEEN, limit=left)
            if not text:
                return False
            emit(text)
        else:
            return (yield from _read_scalar(source, emit, limit=left))
        if not depth:
            return True


def is_object(text: str) -> bool:
    """Whether a text is a JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def read_short_string(source: Source) -> Reading[str | None]:
    """Read a short JSON string without escapes, and white space before it.

    Return None if there is no such string; then at most the white space and the quote were read.
    """
    if not (yield from source.accept('"')):
        return None
    text = yield from source.short_until(('"',))
    if text is None or "\\" in text:
        return None
    source.skip(1)
    return text


def read_arguments(source: Source, emit: Emit, *, limit: int | None = None) -> Reading[bool]:
    """Read a call's arguments: an object, a string that contains one, or null for no arguments."""
    yield from skip_space(source)
    char = yield from source.peek()
    if char == "{":
        return (yield from read_value(source, emit, limit=limit))
    parts: list[str] = []
    is_whole = yield from read_value(source, parts.append, limit=limit)
    text = "".join(parts)
    if is_whole and text == "null":
        return True
    if char == '"':
        # If it is not an object after all, the client gets the text as it is.
        with suppress(ValueError):
            text = pydantic_core.from_json(text, allow_partial="trailing-strings")
        is_whole = is_whole or is_object(text)
    if text:
        emit(text)
    return is_whole


def skip_space(source: Source) -> Reading[None]:
    """Read white space."""
    while (yield from source.peek()).isspace():
        if not source.take(SPACE):
            return


def _read_string(source: Source, emit: Emit, *, limit: int | None) -> Reading[bool]:
    start = source.position
    emit(source.skip(1))
    while True:
        left = None if limit is None else limit - (source.position - start)
        char = yield from source.peek()
        if not char or (left is not None and left <= 0):
            return False
        if char == '"':
            emit(source.skip(1))
            return True
        if char == "\\":
            escape = yield from source.peek(2)
            emit(source.skip(len(escape)).translate(ESCAPES))
        else:
            emit(source.take(IN_STRING, limit=left).translate(ESCAPES))


def _read_scalar(source: Source, emit: Emit, *, limit: int | None) -> Reading[bool]:
    start = source.position
    while True:
        left = None if limit is None else limit - (source.position - start)
        char = yield from source.peek()
        if left is not None and left <= 0:
            return False
        text = source.take(SCALAR, limit=left) if char else ""
        if not text:
            return source.position > start
        emit(text)
