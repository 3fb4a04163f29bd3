"""Parameters of structured outputs. grammar/ checks that schemas and grammars are supported."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from jaxserve.errors import InvalidRequestError

# Largest schema, pattern or grammar, as UTF-8 text.
MAX_BYTES = 2**18
# Largest nesting of objects and arrays in a schema, as in vLLM.
MAX_DEPTH = 64
KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
# Kinds whose answers contain JSON, and the options that apply to them only.
JSON_KINDS = frozenset({"json", "json_object", "structural_tag"})
JSON_OPTIONS = ("disable_any_whitespace", "whitespace_pattern", "disable_additional_properties")


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputsParams:
    """Constraint on the format of an answer, in one of six ways; names as in vLLM.

    Exactly one of these must be given:
    json: JSON schema, as text or as an object; stored as text. regex: pattern that matches the
    whole answer. choice: list of allowed answers. grammar: grammar in Lark's notation or in GBNF,
    the EBNF of llama.cpp. json_object: any JSON object. structural_tag: description, in JSON, of
    free text with tagged parts that follow schemas.

    disable_any_whitespace: no whitespace between the tokens of JSON. whitespace_pattern: regex of
    the whitespace allowed there. Without either, one space may follow a comma or a colon.
    disable_additional_properties: allow only properties that the schema names. reasoning_end: text
    that ends the reasoning; the constraint applies after it. reasoning_begin: text that begins
    the reasoning; an answer that does not start with it has no reasoning. max_reasoning_tokens:
    number of tokens after which reasoning must end. frame: structural tag around the constraint,
    which it contains as a format of type `answer`. It allows other answers too, such as tool calls.

    Raises InvalidRequestError for values of a wrong type, or that are too large.
    """

    json: str | dict[str, Any] | bool | None = None
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None
    disable_additional_properties: bool = False
    reasoning_end: str | None = None
    reasoning_begin: str | None = None
    max_reasoning_tokens: int | None = None
    frame: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in KINDS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            raise InvalidRequestError(
                f"structured_outputs must have exactly one of {', '.join(KINDS)},"
                f" got {', '.join(given) or 'none'}",
                param="structured_outputs",
            )
        if self.json is not None:
            object.__setattr__(self, "json", _schema_text(self.json))
        if self.choice is not None:
            choice = self.choice if isinstance(self.choice, Iterable) else ()
            object.__setattr__(self, "choice", (*choice,))
            is_text = all(isinstance(text, str) and text for text in self.choice)
            if isinstance(choice, str) or not self.choice or not is_text:
                raise refusal("choice", "must be a list of non-empty strings")
        texts_of = ("regex", "grammar", "structural_tag", "whitespace_pattern", "frame")
        for name in (*texts_of, "reasoning_end", "reasoning_begin"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise refusal(name, "must be a non-empty string")
        self._check_options()
        for name in (self.kind, "frame", "whitespace_pattern", "reasoning_end", "reasoning_begin"):
            value = getattr(self, name)
            texts = value if isinstance(value, tuple) else (str(value),)
            num_bytes = sum(len(text.encode(errors="replace")) for text in texts)
            if num_bytes > MAX_BYTES:
                raise refusal(name, f"must be at most {MAX_BYTES} bytes, got {num_bytes}")

    def _check_options(self) -> None:
        """Raise InvalidRequestError for JSON options without JSON, or that exclude each other."""
        if self.whitespace_pattern is not None and self.disable_any_whitespace:
            raise refusal("whitespace_pattern", "cannot be given with disable_any_whitespace")
        if self.kind not in JSON_KINDS:
            for name in JSON_OPTIONS:
                if getattr(self, name) not in (None, False):
                    raise refusal(
                        name, f"is an option of JSON and cannot be given with {self.kind}"
                    )

    @property
    def has_json(self) -> bool:
        """Whether the answer can contain JSON."""
        return self.kind in JSON_KINDS or self.frame is not None

    @property
    def kind(self) -> str:
        """Name of the field that gives the constraint, one of KINDS."""
        return next(name for name in KINDS if getattr(self, name) not in (None, False))


def refusal(name: str, complaint: str) -> InvalidRequestError:
    """Return the InvalidRequestError for a field of structured_outputs."""
    field = f"structured_outputs.{name}"
    return InvalidRequestError(f"{field} {complaint}", param=field)


# Decode floats as text, so that any size is accepted here: grammar/ checks the keywords' limits.
_decoder = msgspec.json.Decoder(float_hook=str)


def _schema_text(schema: object) -> str:
    """Return a JSON schema as text, after checking that it is valid JSON and not too deep."""
    try:
        if isinstance(schema, str):
            text, schema = schema, _decoder.decode(schema)
        else:
            text = msgspec.json.encode(schema).decode()
    except (ValueError, TypeError, RecursionError) as error:
        raise refusal("json", "must be a JSON schema, but is not valid JSON") from error
    if not isinstance(schema, dict | bool):
        raise refusal("json", "must be a JSON schema, which is an object, true or false")
    if is_deeper(schema, MAX_DEPTH):
        raise refusal("json", f"must have at most {MAX_DEPTH} levels of nested objects and arrays")
    return text


def is_deeper(value: object, limit: int) -> bool:
    """Whether the objects and arrays of a JSON value are nested more than `limit` deep."""
    level = [value]
    for _ in range(limit):
        level = [child for value in level for child in _children(value)]
    return bool(level)


def _children(value: object) -> Iterable[object]:
    """Return the objects and arrays directly inside a JSON value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (child for child in inner if isinstance(child, dict | list))
