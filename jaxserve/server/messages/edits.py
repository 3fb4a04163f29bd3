"""The `context_management` of /v1/messages: what the model does not read of a conversation."""

from typing import Annotated, Any, Literal

from pydantic import FailFast, Field, Tag

from jaxserve.frontend.schema.body import Body, Int32, by_type

MAX_EDITS = 16


class ThinkingTurns(Body):
    """The last turns of the assistant, by number."""

    type: Literal["thinking_turns"]
    value: Annotated[Int32, Field(ge=1)]


class AllTurns(Body):
    """All turns of the assistant."""

    type: Literal["all"]


type Kept = Annotated[
    Annotated[Literal["all"], Tag("str")]
    | Annotated[AllTurns, Tag("(all)")]
    | Annotated[ThinkingTurns, Tag("(thinking_turns)")],
    by_type("all, or an object of type all or thinking_turns"),
]


class ClearThinking(Body):
    """Leave out the thinking of older turns. keep: the turns that keep theirs."""

    type: Literal["clear_thinking_20251015"]
    keep: Kept = ThinkingTurns(type="thinking_turns", value=1)

    @property
    def num_kept(self) -> int | None:
        """The number of the assistant's turns with thinking that keep it; None for all."""
        return self.keep.value if isinstance(self.keep, ThinkingTurns) else None


type Edit = Annotated[
    Annotated[ClearThinking, Tag("(clear_thinking_20251015)")],
    by_type("an edit of type clear_thinking_20251015: others are not supported"),
]


class ContextManagement(Body):
    """What to leave out of the conversation before the model reads it."""

    edits: Annotated[list[Edit], FailFast(), Field(max_length=MAX_EDITS)] = Field(
        default_factory=list
    )


def clear_thinking(messages: list[dict[str, Any]], *, keep: int | None) -> None:
    """Remove the reasoning of all messages but the last `keep` that have any; None keeps all."""
    thinking = [message for message in messages if "reasoning" in message]
    for message in [] if keep is None else thinking[: len(thinking) - keep]:
        del message["reasoning"]
