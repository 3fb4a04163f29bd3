"""Content parts of chat messages: text under its several type names, and refusals."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, FailFast, Field, Tag

from jaxserve.frontend.schema.body import MAX_PARTS, Body, wanted
from jaxserve.frontend.schema.fields import Unread
from jaxserve.frontend.schema.parsing import show

PART_HINTS = Unread(ignored=frozenset({"cache_control", "prompt_cache_breakpoint"}))


class TextPart(Body):
    """Text part of a message, under the type of either chat completions or /v1/responses.

    Caching hints have no effect, because prefixes are always cached.
    """

    unread = PART_HINTS

    type: Literal["text", "input_text", "output_text"]
    text: str


class RefusalPart(Body):
    """A refusal in an earlier answer. The model reads it as text."""

    unread = PART_HINTS

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        """The refusal, under the name that all parts share."""
        return self.refusal


# Tags of the union by the type of a part. A part without a type is validated as text.
PART_TYPES = {
    **dict.fromkeys(("text", "input_text", "output_text"), "text"),
    "refusal": "refusal",
}


def _part_type(value: object) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return PART_TYPES.get(kind, "text") if isinstance(kind, str) else "text"


def _known_part(value: object) -> object:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in PART_TYPES:
        raise wanted(f"a part of type text: {show(kind)} is not supported")
    return value


type Part = Annotated[
    Annotated[TextPart, Tag("text")] | Annotated[RefusalPart, Tag("refusal")],
    Discriminator(_part_type),
    BeforeValidator(_known_part, json_schema_input_type=TextPart | RefusalPart),
]
type Parts = Annotated[list[Part], FailFast(), Field(max_length=MAX_PARTS)]
type Content = str | Parts
