"""The formats of a structural tag: those of xgrammar that are supported, and some of our own."""

from typing import Any, Literal

import msgspec

from jaxserve.chat.call_form import Style

type Schema = dict[str, Any] | bool


class _Format(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Part of a text. The `type` field in JSON selects the class."""


class ConstString(_Format, frozen=True, tag="const_string"):
    """A fixed text."""

    value: str


class JsonSchema(_Format, frozen=True, tag="json_schema"):
    """A JSON value that follows a schema.

    In a style other than "json", the properties of an object in the notation of that style.
    any_whitespace: whether white space is allowed wherever JSON allows it; if not, it is that of
    `json.dumps`. xgrammar does not have this field.
    """

    json_schema: Schema
    style: Style = "json"
    any_whitespace: bool = True


class GrammarText(_Format, frozen=True, tag="grammar"):
    """A text that follows a grammar, given in Lark or GBNF."""

    grammar: str


class Regex(_Format, frozen=True, tag="regex"):
    """A text that fully matches a regular expression."""

    pattern: str


class AnyText(_Format, frozen=True, tag="any_text"):
    """Any text up to the next format, containing none of `excludes`.

    unlike: texts that it must not begin with, compared without regard to white space. xgrammar
    does not have this field.
    """

    excludes: list[str] = []
    unlike: list[str] = []


class Terminal(_Format, frozen=True, tag="terminal"):
    """A text that matches a Lark terminal, up to the next format. Not in xgrammar."""

    terminal: str


class Answer(_Format, frozen=True, tag="answer"):
    """The answer that a request constrains. Internal: clients cannot use this format."""


class Sequence(_Format, frozen=True, tag="sequence"):
    """Formats in a row."""

    elements: list["Format"]


class Or(_Format, frozen=True, tag="or"):
    """Exactly one of several formats."""

    elements: list["Format"]


class Optional(_Format, frozen=True, tag="optional"):
    """A format, or nothing."""

    content: "Format"


class Plus(_Format, frozen=True, tag="plus"):
    """A format, one or more times."""

    content: "Format"


class Star(_Format, frozen=True, tag="star"):
    """A format, zero or more times."""

    content: "Format"


class Repeat(_Format, frozen=True, tag="repeat"):
    """A format, `min` to `max` times; a `max` of -1 means no limit."""

    min: int
    max: int
    content: "Format"


class Tag(_Format, frozen=True, tag="tag"):
    """A format between a begin text and an end text, or one of several end texts."""

    begin: str
    content: "Format"
    end: str | list[str]

    @property
    def ends(self) -> tuple[str, ...]:
        """The possible end texts; empty if the tag ends with its content."""
        return tuple(filter(None, [self.end] if isinstance(self.end, str) else self.end))


class TriggeredTags(_Format, frozen=True, tag="triggered_tags"):
    """Free text with tags in it: after one of `triggers`, a tag that begins with it must follow.

    at_least_one: the text begins with a tag. stop_after_first: the text ends after the first tag.
    """

    triggers: list[str]
    tags: list[Tag]
    at_least_one: bool = False
    stop_after_first: bool = False
    excludes: list[str] = []


class TagsWithSeparator(_Format, frozen=True, tag="tags_with_separator"):
    """Tags with a separator between them, and no other text.

    at_least_one: require a tag. stop_after_first: allow only one. Not in xgrammar: begin, a text
    joined to the start of the first tag; max_tags, the maximum number of tags.
    """

    tags: list[Tag]
    separator: str
    at_least_one: bool = False
    stop_after_first: bool = False
    begin: str = ""
    max_tags: int | None = None


type Format = (
    ConstString
    | JsonSchema
    | GrammarText
    | Regex
    | AnyText
    | Terminal
    | Answer
    | Sequence
    | Or
    | Optional
    | Plus
    | Star
    | Repeat
    | Tag
    | TriggeredTags
    | TagsWithSeparator
)


class StructuralTag(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The format of a whole answer."""

    format: Format
    type: Literal["structural_tag"] = "structural_tag"


class LegacyTag(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tag around JSON, in vLLM's older notation."""

    begin: str
    end: str
    schema: Schema = True


class LegacyStructuralTag(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Triggered tags around JSON, in vLLM's older notation.

    at_least_one and stop_after_first are those of `TriggeredTags`.
    """

    structures: list[LegacyTag]
    triggers: list[str]
    type: Literal["structural_tag"] = "structural_tag"
    at_least_one: bool = False
    stop_after_first: bool = False

    @property
    def format(self) -> TriggeredTags:
        """The same format in the current notation."""
        return TriggeredTags(
            triggers=self.triggers,
            tags=[
                Tag(begin=tag.begin, content=JsonSchema(json_schema=tag.schema), end=tag.end)
                for tag in self.structures
            ],
            at_least_one=self.at_least_one,
            stop_after_first=self.stop_after_first,
        )
