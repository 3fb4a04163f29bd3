"""Calls whose arguments stand between tags: `<function=weather><parameter=city>Oslo</parameter>`.

Values are written without quotes, so only the tool's schema distinguishes the string 1 from the
number 1.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pydantic_core

from jaxserve.chat.pieces import Sink
from jaxserve.chat.source import Emit, Reading, Source
from jaxserve.chat.syntax import Schemas

NAME = re.compile(r"[\w.:/-]{1,128}")
# Models also write Python's keywords.
WORDS = {"True": "true", "False": "false", "None": "null"}
STRING = frozenset({"string"})
# DeepSeek's attribute after the key of a string.
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
# Maximum number of $refs followed in a row.
MAX_REFERENCES = 8


@dataclass(frozen=True, slots=True)
class TaggedCall:
    """A name, then keys and values between tags.

    name: the tag before the name, and the tags that may end it. key and value: the tags before and
    after each. end: the optional end tag of the call. pads: whether values have a line break on
    either side.
    """

    name: tuple[str, tuple[str, ...]]
    key: tuple[str, str]
    value: tuple[str, str]
    end: str
    pads: bool = False

    @property
    def begins(self) -> tuple[str, ...]:
        """The markers before a name."""
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
        # It is a call only if one of these tags follows.
        tag = yield from source.accept(self.key[0], self.end)
        if not tag:
            return False
        sink.call(name)
        source.mark()
        schema = schemas.get(name, {})
        properties = _mapping(schema.get("properties"))
        types = {key: types_of(value, schema) for key, value in properties.items()}
        separator = "{"
        # A key without an end tag ends where its value begins.
        key_ends = tuple(filter(None, (self.key[1], self.value[0])))
        while tag == self.key[0]:
            key = yield from source.short_until(key_ends)
            if key is None:
                if source.is_cut_soon():
                    begun = re.split('[<"]', source.skip_rest().strip())[0]
                    sink.arguments((separator + _json(begun)[:-1]) if begun else "")
                    return True
                break
            yield from source.accept(self.key[1])
            if self.value[0] and not (yield from source.accept(self.value[0])):
                if source.is_cut_within(self.value[0]):
                    source.skip_rest()
                    sink.arguments(f"{separator}{_json(key.strip())}: ")
                    return True
                break
            key, _, attributes = key.strip().partition('"')
            sink.arguments(f"{separator}{_json(key)}: ")
            separator = ", "
            kinds = STRING if IS_STRING in attributes else types.get(key, frozenset())
            is_whole = yield from self._read_value(source, sink.arguments, kinds)
            source.mark()
            if not is_whole:
                return True  # the text ended within a value, and so did its JSON
            tag = yield from source.accept(self.key[0], self.end)
            if not tag and source.is_cut_within(self.key[0], self.end):
                source.skip_rest()
                return True
        sink.arguments("{}" if separator == "{" else "}")
        sink.end_call()
        return tag == self.end

    def _read_value(self, source: Source, emit: Emit, types: frozenset[str]) -> Reading[bool]:
        end = self.value[1]
        ends: tuple[str, ...] = ("\n" + end, end) if self.pads else (end,)
        # As in vLLM, a value without an end tag ends before the next key or the end of the call.
        others = (self.key[0], self.end)
        ends += (*others, *("\n" + other for other in others))
        if self.pads and (yield from source.peek()) == "\n":
            source.skip(1)
        # The type of a value is known only at its end, unless it can only be a string.
        parts: list[str] = []
        is_string = types == STRING
        take: Emit = (lambda text: emit(_json(text)[1:-1])) if is_string else parts.append
        if is_string:
            emit('"')
        found = yield from source.until(ends, take, drops_begun=True)
        text = "".join(parts)
        if is_string:
            emit('"' if found else "")
        else:
            emit(_converted(text, types) if found else _begun(text, types))
        if found.strip() == end:
            source.skip(len(found))
        return bool(found)


def _converted(text: str, types: frozenset[str]) -> str:
    """Return the JSON of an unquoted value: of one of `types` if it parses as such, else a string.

    types: JSON schema types; empty for any.
    """
    value = WORDS.get(text.strip(), text.strip())
    try:
        kinds = KINDS[type(json.loads(value, parse_constant=_refuse))]
    except (ValueError, RecursionError):
        return _json(text)
    return value if not types or types & kinds else _json(text)


def _begun(text: str, types: frozenset[str]) -> str:
    """Return the JSON of a truncated value, itself truncated."""
    if not text.strip():
        return ""
    try:
        value = pydantic_core.from_json(text, allow_inf_nan=False, allow_partial="trailing-strings")
    except ValueError:
        return _json(text)[:-1]
    return text.strip() if not types or types & KINDS[type(value)] else _json(text)[:-1]


def _refuse(constant: str) -> None:
    """Refuse NaN and the infinities, which `json.loads` accepts but JSON does not have."""
    raise ValueError(constant)


def types_of(
    schema: object, whole: Mapping[str, Any], *, depth: int = MAX_REFERENCES
) -> frozenset[str]:
    """Return the types that a schema allows; empty if it allows any.

    schema: a part of `whole`, which its references are resolved in.
    """
    schema = resolved(schema, whole)
    match schema.get("type"):
        case str(kind):
            return frozenset({kind})
        case [*kinds] if all(isinstance(kind, str) for kind in kinds):
            return frozenset(kinds)
    if "const" in schema:
        return KINDS.get(type(schema["const"]), frozenset())
    if isinstance(schema.get("enum"), list):
        return frozenset().union(*(KINDS.get(type(value), ()) for value in schema["enum"]))
    choices = schema.get("anyOf", schema.get("oneOf"))
    if not isinstance(choices, list) or not depth:
        return frozenset()
    each = [types_of(choice, whole, depth=depth - 1) for choice in choices]
    return frozenset().union(*each) if all(each) else frozenset()


def resolved(schema: object, whole: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema with its leading `$ref`s followed within `whole`."""
    found = _mapping(schema)
    for _ in range(MAX_REFERENCES):
        reference = found.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        part: object = whole
        for key in reference[2:].split("/"):
            part = _mapping(part).get(key.replace("~1", "/").replace("~0", "~"))
        found = _mapping(part)
    return found


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
