"""What a structural tag is made of: the formats of xgrammar, as far as grammars can follow them."""

from typing import Any, Literal

import msgspec

from jaxserve.chat.call_form import Style

type Schema = dict[str, Any] | bool


class _Format(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a text. Its `type`, in JSON, says which."""


class ConstString(_Format, frozen=True, tag="const_string"):
    """This text."""

    value: str


class JsonSchema(_Format, frozen=True, tag="json_schema"):
    """JSON of a schema, or what stands for an object's properties in a style of their own.

    any_whitespace: whether a model may put white space where JSON allows it; else it is as in
    `json.dumps`. It is a field of ours.
    """

    json_schema: Schema
    style: Style = "json"
    any_whitespace: bool = True


class GrammarText(_Format, frozen=True, tag="grammar"):
    """A text of a grammar, in Lark's notation or in GBNF."""

    grammar: str


class Regex(_Format, frozen=True, tag="regex"):
    """A text that a regex matches as a whole."""

    pattern: str


class AnyText(_Format, frozen=True, tag="any_text"):
    """Any text, up to what follows it, with none of `excludes` in it.

    unlike: texts that it does not begin with, whatever white space is in them. It is a field of
    ours.
    """

    excludes: list[str] = []
    unlike: list[str] = []


class Terminal(_Format, frozen=True, tag="terminal"):
    """A text of a terminal of Lark, up to what follows it. It is a format of ours."""

    terminal: str


class Answer(_Format, frozen=True, tag="answer"):
    """What a request says of the form of its answer. It is a format of ours, and not a client's."""


class Sequence(_Format, frozen=True, tag="sequence"):
    """One after another."""

    elements: list["Format"]


class Or(_Format, frozen=True, tag="or"):
    """One of them."""

    elements: list["Format"]


class Optional(_Format, frozen=True, tag="optional"):
    """It, or nothing."""

    content: "Format"


class Plus(_Format, frozen=True, tag="plus"):
    """It, once or more often."""

    content: "Format"


class Star(_Format, frozen=True, tag="star"):
    """It, any number of times."""

    content: "Format"


class Repeat(_Format, frozen=True, tag="repeat"):
    """It, so many times; a `max` of -1 is no bound."""

    min: int
    max: int
    content: "Format"


class Tag(_Format, frozen=True, tag="tag"):
    """A part between two texts, the second of which may be one of several."""

    begin: str
    content: "Format"
    end: str | list[str]

    @property
    def ends(self) -> tuple[str, ...]:
        """The texts of which one ends it; none if it ends where its content does."""
        return tuple(filter(None, [self.end] if isinstance(self.end, str) else self.end))


class TriggeredTags(_Format, frozen=True, tag="triggered_tags"):
    """Any text, where what one of `triggers` begins goes on as a tag that begins so.

    at_least_one: the text begins with a tag. stop_after_first: it ends with the first.
    """

    triggers: list[str]
    tags: list[Tag]
    at_least_one: bool = False
    stop_after_first: bool = False
    excludes: list[str] = []


class TagsWithSeparator(_Format, frozen=True, tag="tags_with_separator"):
    """Tags and nothing else, with a text between them.

    at_least_one: not none. stop_after_first: no more than one. Fields of ours: begin, a text before
    the first, and in one piece with it; max_tags: no more than that.
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
    """A format that is a whole answer."""

    format: Format
    type: Literal["structural_tag"] = "structural_tag"


class LegacyTag(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tag around JSON, in the older form."""

    begin: str
    end: str
    schema: Schema = True


class LegacyStructuralTag(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The older form: triggered tags around JSON; the last two fields are of the newer."""

    structures: list[LegacyTag]
    triggers: list[str]
    type: Literal["structural_tag"] = "structural_tag"
    at_least_one: bool = False
    stop_after_first: bool = False

    @property
    def format(self) -> TriggeredTags:
        """The same in the newer form."""
        return TriggeredTags(
            triggers=self.triggers,
            tags=[
                Tag(begin=tag.begin, content=JsonSchema(json_schema=tag.schema), end=tag.end)
                for tag in self.structures
            ],
            at_least_one=self.at_least_one,
            stop_after_first=self.stop_after_first,
        )
