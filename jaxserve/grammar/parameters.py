"""Formats of call arguments that are not JSON, such as tagged parameters or Python keywords.

They mirror how chat/syntax parses the arguments: text between tags is a string if the schema allows
nothing else, and JSON otherwise.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from jaxserve.api.structured_outputs import refusal
from jaxserve.chat.syntax.tagged_call import resolved, types_of
from jaxserve.grammar import formats
from jaxserve.grammar.formats import ConstString, Format, JsonSchema, Or, Regex, Terminal

STRING, STRING_OR_NULL = frozenset({"string"}), frozenset({"string", "null"})
# Keywords that do not constrain values: annotations, and definitions for references.
NOTES = {
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
}
DATE = (
    r"(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|"
    r"(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|"
    r"[0-9]{2}(?:0[48]|[2468][048]|[13579][26])-02-29)"
)
TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?"
    r"(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
NAME = r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*"
# Regexes of JSON schema's string formats. Each accepts a subset of the format.
STRING_FORMATS = {
    "date": DATE,
    "time": TIME,
    "date-time": f"{DATE}T{TIME}",
    "email": rf"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@{NAME}(?:\.{NAME})+",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "uri": r"[a-z][a-z0-9+.-]*:(?:[A-Za-z0-9._~:/?#@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+",
}
PLACES = re.compile(r"\{(key|value|is_string|n)\}")
LINE_BREAK = formats.Optional(content=ConstString(value="\n"))
# As in JSON, or as in Python.
BOOLEAN = Regex(pattern="[Tt]rue|[Ff]alse")
ANY = "/(?s:.*)/"
# A key that the schema does not declare.
OTHER_KEY = "/[A-Za-z_][A-Za-z0-9_]{0,63}/"


class _Object(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The supported keywords in a schema of arguments."""

    type: str = "object"
    properties: dict[str, formats.Schema] = {}
    required: list[str] = []
    additional_properties: formats.Schema = True


class _String(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The supported keywords in a schema of an unquoted string."""

    type: str | list[str] | None = None
    enum: list[str] | None = None
    const: str | None = None
    pattern: str | None = None
    min_length: int = 0
    max_length: int | None = None
    format: str | None = None
    any_of: list[formats.Schema] | None = None
    one_of: list[formats.Schema] | None = None

    @property
    def choices(self) -> list[formats.Schema]:
        """The alternative schemas of the value, if any."""
        return self.any_of or self.one_of or []


def without(terminal: str, texts: Iterable[str], *, is_whole: bool = False) -> str:
    """Return a terminal that excludes texts containing any of `texts`.

    is_whole: exclude only texts equal to one of them.
    """
    pattern = "|".join(map(regex_of, texts))
    around = "" if is_whole else "(?s:.*)"
    return f"{terminal} & ~/{around}(?:{pattern}){around}/" if pattern else terminal


def regex_of(text: str) -> str:
    """Return a regex that matches a text literally."""
    return "".join(char if char.isalnum() else f"\\x{{{ord(char):x}}}" for char in text)


@dataclass(frozen=True, slots=True)
class Written:
    """Notation of the parameters of a call.

    one: a parameter, with the placeholders "{key}" and "{value}", and optionally "{is_string}" and
    "{n}" (an optional line break). bare: terminal of unquoted strings; None if values are Python
    literals. between: separator of two parameters. key: regex of the keys that can be written.
    """

    one: str
    bare: str | None
    between: str = ""
    key: str = r"[\w.$:/-]{1,128}"


STYLES: Mapping[str, Written] = {
    "qwen_xml": Written(
        "<parameter={key}>\n{value}\n</parameter>\n",
        bare=without(ANY, ["</parameter>", "<parameter=", "</function>"]),
    ),
    # The parser strips line breaks around a value.
    "seed_xml": Written(
        "<parameter={key}>{value}</parameter>\n",
        bare=without(
            r"/(?s:(?:[^\n](?:.*[^\n])?)?)/", ["</parameter>", "<parameter=", "</function>"]
        ),
    ),
    "glm_xml": Written(
        "<arg_key>{key}</arg_key>{n}<arg_value>{value}</arg_value>{n}",
        bare=without(ANY, ["</arg_value>", "<arg_key>", "</tool_call>"]),
    ),
    "deepseek_xml": Written(
        '<｜DSML｜parameter name="{key}" string="{is_string}">{value}</｜DSML｜parameter>\n',
        bare=without(
            ANY, ["</｜DSML｜parameter>", '<｜DSML｜parameter name="', "</｜DSML｜invoke>"]
        ),
    ),
    "python": Written("{key}={value}", bare=None, between=", ", key=r"[A-Za-z_]\w{0,127}"),
}


def parameters(schema: formats.Schema, style: str) -> Format:
    """Return the format of the properties of an object, in the order of the schema.

    Raises InvalidRequestError if the schema uses keywords that this notation cannot express.
    """
    written, whole = STYLES[style], {} if isinstance(schema, bool) else schema
    fields = _read({} if schema is True else schema, _Object)
    if fields.type != "object":
        raise _cannot(f"is that of {fields.type}")
    keys = dict.fromkeys([*fields.properties, *fields.required])
    each: list[tuple[Format, str]] = []
    for key in keys:
        value = fields.properties.get(key, True)
        if not re.fullmatch(written.key, key):
            raise _cannot(f"has the key {json.dumps(key)}")
        if value is not False:
            times = "" if key in fields.required else "?"
            each.append((_parameter(written, ConstString(value=key), value, whole), times))
    others = fields.additional_properties
    if others is not False:
        key_format = Terminal(terminal=without(OTHER_KEY, keys, is_whole=True))
        part = _parameter(written, key_format, others, whole, is_declared=False)
        each.append((part, "*"))
    return _chain(each, written.between)


def _chain(each: Sequence[tuple[Format, str]], between: str) -> Format:
    """Return parts in a row, joined by `between`. Each repeats once, or as "?" or "*" say."""

    def after(index: int) -> Iterator[Format]:
        for part, times in each[index:]:
            one = formats.Sequence(elements=[ConstString(value=between), part]) if between else part
            match times:
                case "?":
                    yield formats.Optional(content=one)
                case "*":
                    yield formats.Star(content=one)
                case _:
                    yield one

    if not between:
        return formats.Sequence(elements=[*after(0)])
    # No separator before the first part that is present: one alternative for each candidate.
    ways: list[Format] = []
    for index, (part, times) in enumerate(each):
        more = index if times == "*" else index + 1
        ways.append(formats.Sequence(elements=[part, *after(more)]))
        if not times:
            return Or(elements=ways)
    return Or(elements=[*ways, ConstString(value="")])


def _parameter(
    written: Written,
    key: Format,
    schema: formats.Schema,
    whole: Mapping[str, Any],
    *,
    is_declared: bool = True,
) -> Format:
    # The parser does not know the types of undeclared parameters.
    types = types_of(schema, whole) if is_declared else frozenset[str]()
    is_string: bool | None = None
    value: Format
    if written.bare is None:
        value = _in_python(schema, whole)
    elif not _words(schema) or (types == STRING_OR_NULL and _says_types_alone(schema)):
        # Any text is valid, whichever type the parser takes it for.
        value = Terminal(terminal=written.bare)
    elif types == STRING:
        value, is_string = _bare(schema, written.bare, whole), True
    else:
        is_boolean = _words(schema) == {"type": "boolean"}
        value = BOOLEAN if is_boolean else _json(schema, whole)
        is_string = False
    flag: Format = Regex(pattern="true|false")
    if is_string is not None:
        flag = ConstString(value="true" if is_string else "false")
    return filled(
        written.one,
        PLACES,
        {"key": key, "value": value, "is_string": flag, "n": LINE_BREAK},
    )


def filled(text: str, places: re.Pattern[str], parts: Mapping[str, Format]) -> formats.Sequence:
    """Return a text with its placeholders replaced by formats. Adjacent texts are joined."""
    elements: list[Format] = []
    for index, piece in enumerate(places.split(text)):
        part = parts[piece] if index % 2 else ConstString(value=piece)
        match elements, part:
            case [*_, ConstString(value=before)], ConstString(value=after):
                elements[-1] = ConstString(value=before + after)
            case _:
                elements.append(part)
    return formats.Sequence(elements=elements)


def _bare(schema: formats.Schema, terminal: str, whole: Mapping[str, Any]) -> Format:
    """Return the format of an unquoted string that matches `terminal` and follows `schema`."""
    fields = _read(resolved(schema, whole), _String)
    if fields.choices:
        if fields != _String(any_of=fields.any_of, one_of=fields.one_of):
            raise _cannot("says more beside anyOf or oneOf")
        return Or(elements=[_bare(choice, terminal, whole) for choice in fields.choices])
    values = fields.enum if fields.const is None else [fields.const]
    if values is not None:
        if fields != _String(type=fields.type, enum=fields.enum, const=fields.const):
            raise _cannot("says more beside enum or const")
        return Or(elements=[ConstString(value=value) for value in values])
    terminals = [terminal]
    if fields.pattern is not None:
        terminals.append(slashed(_anchored(fields.pattern)))
    if (fields.min_length, fields.max_length) != (0, None):
        high = "" if fields.max_length is None else fields.max_length
        terminals.append(f"/(?s:.{{{fields.min_length},{high}}})/")
    if fields.format is not None:
        if fields.format not in STRING_FORMATS:
            raise _cannot(f"has the format {fields.format}")
        terminals.append(slashed(STRING_FORMATS[fields.format]))
    return Terminal(terminal=" & ".join(terminals))


def _in_python(schema: formats.Schema, whole: Mapping[str, Any]) -> Format:
    """Return the format of a Python literal. Lists and objects are written as JSON."""
    match _words(schema if isinstance(schema, bool) else resolved(schema, whole)):
        case {"anyOf": [*choices], **others} | {"oneOf": [*choices], **others} if not others:
            return Or(elements=[_in_python(choice, whole) for choice in choices])
        case {"type": [*kinds], **others} if not others:
            return Or(elements=[_in_python({"type": kind}, whole) for kind in kinds])
        case {"enum": [*values]} if all(isinstance(v, str | bool | None) for v in values):
            return Or(elements=[ConstString(value=_literal(value)) for value in values])
        case {"type": "boolean", **others} if not others:
            return Or(elements=[ConstString(value="True"), ConstString(value="False")])
        case {"type": "null", **others} if not others:
            return ConstString(value="None")
    return _json(schema, whole)


def _literal(value: object) -> str:
    is_text = isinstance(value, str)
    return json.dumps(value, ensure_ascii=False) if is_text else repr(value)


def _says_types_alone(schema: formats.Schema) -> bool:
    """Whether a schema constrains nothing but the type."""
    match _words(schema):
        case {"type": _, **others} if not others:
            return True
        case {"anyOf": [*choices], **others} | {"oneOf": [*choices], **others} if not others:
            return all(map(_says_types_alone, choices))
    return False


def _words(schema: Mapping[str, Any] | bool) -> dict[str, Any]:
    """Return the keywords of a schema that constrain values."""
    if not isinstance(schema, bool | Mapping):
        raise _cannot("has a part that is neither an object nor a boolean")
    return {} if isinstance(schema, bool) else {k: v for k, v in schema.items() if k not in NOTES}


def _read[T](schema: Mapping[str, Any] | bool, kind: type[T]) -> T:
    """Convert a schema to `kind`. Raises InvalidRequestError for keywords that it does not have."""
    try:
        return msgspec.convert(schema if schema is False else _words(schema), kind)
    except msgspec.ValidationError as error:
        raise _cannot(f"is not supported: {error}") from error


def _json(schema: formats.Schema, whole: Mapping[str, Any]) -> JsonSchema:
    """Return the format of JSON that follows `schema`, a part of `whole`."""
    if '"$ref"' in json.dumps(schema, default=float):
        place = "#/$defs/whole"
        schema = {**_moved(schema, place), "$defs": {"whole": _moved(whole, place)}}
    return JsonSchema(json_schema=schema, any_whitespace=False)


def _moved(value: Any, place: str) -> Any:
    """Return a schema with its references to the root changed to `place`."""
    if isinstance(value, Mapping):
        moved = {key: _moved(inner, place) for key, inner in value.items()}
        reference = moved.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            moved["$ref"] = place + reference[1:]
        return moved
    if isinstance(value, list):
        return [_moved(inner, place) for inner in value]
    return value


def _anchored(pattern: str) -> str:
    """Return a regex that fully matches the texts in which `pattern` is found."""
    before, after = "(?s:.*)", "(?s:.*)"
    if pattern.startswith("^"):
        pattern, before = pattern[1:], ""
    if pattern.endswith("$") and not pattern.endswith("\\$"):
        pattern, after = pattern[:-1], ""
    return f"{before}(?:{pattern}){after}"


def slashed(pattern: str) -> str:
    """Return a regex in Lark's notation."""
    return "/" + re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", pattern).replace("\n", "\\n") + "/"


def _cannot(complaint: str) -> Exception:
    return refusal("structural_tag", f"has arguments whose schema {complaint}")
