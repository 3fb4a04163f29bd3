"""Calls whose arguments stand between tags: `<function=weather><parameter=city>Oslo</parameter>`.

Values are written bare, so only the tool's schema tells the text 1 from the number 1.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxserve.chat.pieces import Sink
from jaxserve.chat.source import Emit, Reading, Source
from jaxserve.chat.syntax import Schemas

NAME = re.compile(r"[\w.:/-]{1,128}")
# Python's words, which models write where JSON's are meant.
WORDS = {"True": "true", "False": "false", "None": "null"}
STRING = frozenset({"string"})
# DeepSeek's way of saying so itself, behind the key.
IS_STRING = 'string="true"'
KINDS: Mapping[type, frozenset[str]] = {
    bool: frozenset({"boolean"}),
    dict: frozenset({"object"}),
    float: frozenset({"number"}),
    int: frozenset({"integer", "number"}),
    list: frozenset({"array"}),
    str: frozenset({"string"}),
    type(None): frozenset({"null"}),
}


@dataclass(frozen=True, slots=True)
class TaggedCall:
    """A name, then keys and values between tags.

    name: what stands before a name, and what may end it. key and value: what stands before and
    after. end: what ends the call, or may. pads: whether a line break follows and precedes a value.
    """

    name: tuple[str, tuple[str, ...]]
    key: tuple[str, str]
    value: tuple[str, str]
    end: str
    pads: bool = False

    @property
    def begins(self) -> tuple[str, ...]:
        """What stands before a name."""
        return (self.name[0],) if self.name[0] else ()

    def read(self, source: Source, sink: Sink, schemas: Schemas) -> Reading[bool]:
        """See CallSyntax."""
        before, ends = self.name
        if before and not (yield from source.accept(before)):
            return False
        name = ((yield from source.short_until(ends)) or "").strip()
        if not NAME.fullmatch(name):
            return False
        yield from source.accept(*(end for end in ends if end not in (self.key[0], self.end)))
        # One that goes on as calls do is a call.
        tag = yield from source.accept(self.key[0], self.end)
        if not tag:
            return False
        sink.call(name)
        source.mark()
        types = {
            key: frozenset(_types(schema))
            for key, schema in _mapping(schemas.get(name, {}).get("properties")).items()
        }
        num_read = 0
        while tag == self.key[0]:
            key = yield from source.short_until((self.key[1],))
            if key is None:
                break
            yield from source.accept(self.key[1])
            if self.value[0] and not (yield from source.accept(self.value[0])):
                break
            key, _, attributes = key.strip().partition('"')
            sink.arguments(f"{', ' if num_read else '{'}{_json(key)}: ")
            num_read += 1
            kinds = STRING if IS_STRING in attributes else types.get(key)
            is_whole = yield from self._read_value(source, sink.arguments, kinds)
            source.mark()
            if not is_whole:
                return True  # the text has ended within a value, and the JSON with it
            tag = yield from source.accept(self.key[0], self.end)
        sink.arguments("}" if num_read else "{}")
        sink.end_call()
        return tag == self.end

    def _read_value(
        self, source: Source, emit: Emit, types: frozenset[str] | None
    ) -> Reading[bool]:
        end = self.value[1]
        ends = ("\n" + end, end) if self.pads else (end,)
        if self.pads and (yield from source.peek()) == "\n":
            source.skip(1)
        if types == STRING:
            emit('"')
            found = yield from source.until(ends, lambda text: emit(_json(text)[1:-1]))
            if found:
                emit('"')
        else:
            # Which of the types it is shows only at its end.
            parts: list[str] = []
            found = yield from source.until(ends, parts.append)
            text = "".join(parts)
            emit(_converted(text, types or frozenset()) if found else text)
        source.skip(len(found))
        return bool(found)


def _converted(text: str, types: frozenset[str]) -> str:
    """Return the JSON of a value written bare: of one of the types, or a string."""
    value = WORDS.get(text.strip(), text.strip())
    try:
        kinds = KINDS[type(json.loads(value, parse_constant=_refuse))]
    except (ValueError, RecursionError):
        return _json(text)
    return value if not types or types & kinds else _json(text)


def _refuse(constant: str) -> None:
    """NaN and the infinities are Python's words, and not JSON."""
    raise ValueError(constant)


def _types(schema: object) -> Iterator[str]:
    """The types that a JSON schema names, as far as they show at a glance."""
    schema = _mapping(schema)
    kinds = schema.get("type")
    yield from [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else ()
    if kinds is None and isinstance(schema.get("enum"), list):
        yield from (kind for value in schema["enum"] for kind in KINDS.get(type(value), ()))
    for word in ("anyOf", "oneOf"):
        choices = schema.get(word)
        for choice in choices if isinstance(choices, list) else ():
            yield from _types(choice)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
