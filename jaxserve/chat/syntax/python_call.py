"""Calls in Python syntax: `weather(city="Oslo", days=[1, 2])`."""

import json
import re

from jaxserve.chat.pieces import Sink
from jaxserve.chat.source import Emit, Reading, Source
from jaxserve.chat.syntax import Schemas
from jaxserve.chat.syntax.json_value import skip_space

FUNCTION = re.compile(r"[A-Za-z_][\w.-]{0,127}")
KEYWORD = re.compile(r"[A-Za-z_]\w{0,127}")
IN_STRING = re.compile(r"""[^"'\\]+""")
WORD = re.compile(r"[\w+\-.]+")
NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
CUT_NUMBER = re.compile(r"-?(?:\d+(?:\.\d*)?(?:[eE][+-]?\d*)?)?")
WORDS = {"True": "true", "False": "false", "None": "null"}
JSON_WORDS = frozenset(WORDS.values())
BRACKETS = {"[": "[", "(": "[", "{": "{", "]": "]", ")": "]", "}": "}"}
ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}
ESCAPED |= {char: char for char in "\\'\""}
CODES = {"x": re.compile(r"[0-9a-fA-F]{2}"), "u": re.compile(r"[0-9a-fA-F]{4}")}
NUM_DIGITS = {"x": 2, "u": 4}


class PythonCall:
    """A function name with literals as keyword arguments."""

    @property
    def begins(self) -> tuple[str, ...]:
        """Empty, because a call begins with a name."""
        return ()

    def read(self, source: Source, sink: Sink, schemas: Schemas) -> Reading[bool]:
        """See CallSyntax."""
        yield from skip_space(source)
        name = yield from source.short_until(("(",))
        if name is None or not FUNCTION.fullmatch(name):
            return False
        if schemas and name not in schemas:
            return False
        source.skip(1)
        if (yield from source.accept(")")):
            sink.call(name)
            sink.end_call()
            return True
        separator = "{"
        while True:
            yield from skip_space(source)
            key = yield from source.short_until(("=",))
            if separator != "{" and key is None and source.is_cut_soon():
                return False
            if key is None or not KEYWORD.fullmatch(key.strip()):
                break
            source.skip(1)
            if separator == "{":
                sink.call(name)
            sink.arguments(f"{separator}{json.dumps(key.strip())}: ")
            separator = ", "
            source.mark()
            is_whole = yield from _read_literal(source, sink.arguments)
            source.mark()
            found = (yield from source.accept(",", ")")) if is_whole else ""
            if not is_whole or (not found and source.is_cut_within()):
                return False
            if found != "," or (yield from source.accept(")")):
                sink.arguments("}")
                sink.end_call()
                return bool(found)
        if separator == "{":
            return False
        sink.arguments("}")
        sink.end_call()
        return False


def _read_literal(source: Source, emit: Emit) -> Reading[bool]:
    """Emit a literal as JSON; return whether it is complete."""
    brackets: list[str] = []
    is_key = False
    needs_comma = False  # emitted with the next element, because Python allows a trailing comma

    def begin(text: str) -> None:
        nonlocal needs_comma
        emit(", " + text if needs_comma else text)
        needs_comma = False

    while True:
        yield from skip_space(source)
        char = yield from source.peek()
        if not char:
            return False
        if char in "\"'":
            begin('"')
            if not (yield from _read_string(source, emit)):
                return False
            emit('"')
        elif char in "[({":
            begin(BRACKETS[source.skip(1)])
            brackets.append(char)
            is_key = char == "{"
        elif char in "])}" and brackets:
            needs_comma = is_key = False
            emit(BRACKETS[source.skip(1)])
            brackets.pop()
        elif char in ",:" and brackets:
            needs_comma = source.skip(1) == ","
            is_key = needs_comma and brackets[-1] == "{"
            if not needs_comma:
                emit(": ")
        else:
            word = yield from _read_word(source)
            if not word:
                return False
            word = WORDS.get(word, word)
            # JSON's keys are strings.
            is_cut = not (yield from source.peek())
            number = CUT_NUMBER if is_cut else NUMBER
            is_json = not is_key and (word in JSON_WORDS or number.fullmatch(word))
            text = json.dumps(word, ensure_ascii=False)
            begin(word if is_json else text[:-1] if is_cut else text)
        if not brackets:
            return True


def _read_word(source: Source) -> Reading[str]:
    parts: list[str] = []
    while (yield from source.peek()) and (more := source.take(WORD)):
        parts.append(more)
    return "".join(parts)


def _read_string(source: Source, emit: Emit) -> Reading[bool]:
    """Emit the content of a string, escaped for JSON; return whether the string is closed."""
    quote = source.skip(1)
    while True:
        char = yield from source.peek()
        if not char:
            return False
        if char == quote:
            source.skip(1)
            return True
        if char == "\\":
            text = yield from _read_escape(source)
        elif char in "\"'":
            text = source.skip(1)
        else:
            text = source.take(IN_STRING)
        emit(json.dumps(text, ensure_ascii=False)[1:-1])


def _read_escape(source: Source) -> Reading[str]:
    """Read an escape sequence; as in Python, keep an unknown one unchanged."""
    kind = (yield from source.peek(2))[1:]
    num_digits = NUM_DIGITS.get(kind, 0)
    digits = (yield from source.peek(2 + num_digits))[2:]
    if not kind or len(digits) < num_digits:
        # The text ends within the sequence.
        source.skip_rest()
        return ""
    if kind in CODES:
        code = int(digits, 16) if CODES[kind].fullmatch(digits) else None
        # A lone surrogate cannot be encoded in UTF-8.
        if code is not None and not 0xD800 <= code < 0xE000:
            source.skip(2 + len(digits))
            return chr(code)
    source.skip(1 + len(kind))
    return ESCAPED.get(kind, "\\" + kind)
