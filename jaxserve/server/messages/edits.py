"""`context_management` of /v1/messages: removes parts of the conversation from the prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import FailFast, Field, Tag

from jaxserve.frontend.schema.body import Body, Dropped, Int32, by_type
from jaxserve.frontend.tools import MAX_TOOLS
from jaxserve.server.messages.answers import AppliedEdit, ClearedThinking, ClearedToolUses

MAX_EDITS = 16
# Text in place of a removed result.
CLEARED = "[This tool result was cleared.]"

type Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Conversation:
    """Messages of a chat, and a function that counts the tokens of a prompt."""

    messages: Messages
    count: Callable[[Messages], int]

    @cached_property
    def num_tokens(self) -> int:
        """Number of prompt tokens. Slow: renders and encodes the prompt."""
        return self.count(self.messages)

    @property
    def calls(self) -> list[dict[str, Any]]:
        """All tool calls, in order."""
        return [call for message in self.messages for call in message.get("tool_calls", ())]


class ThinkingTurns(Body):
    """Keeps the thinking of the last turns of the assistant."""

    type: Literal["thinking_turns"]
    value: Annotated[Int32, Field(ge=1)]


class AllTurns(Body):
    """Keeps the thinking of all turns of the assistant."""

    type: Literal["all"]


type Kept = Annotated[
    Annotated[Literal["all"], Tag("str")]
    | Annotated[AllTurns, Tag("(all)")]
    | Annotated[ThinkingTurns, Tag("(thinking_turns)")],
    by_type("all, or an object of type all or thinking_turns"),
]


class ClearThinking(Body):
    """Removes the thinking of older turns. keep: turns that keep theirs."""

    type: Literal["clear_thinking_20251015"]
    keep: Kept = ThinkingTurns(type="thinking_turns", value=1)

    def cleared(self, conversation: Conversation) -> tuple[Messages, int]:
        """See ClearToolUses."""
        messages = conversation.messages
        thinking = [index for index, message in enumerate(messages) if "reasoning" in message]
        num_kept = self.keep.value if isinstance(self.keep, ThinkingTurns) else len(thinking)
        old = {*thinking[: max(0, len(thinking) - num_kept)]}
        without = [
            {name: value for name, value in message.items() if name != "reasoning"}
            if index in old
            else message
            for index, message in enumerate(messages)
        ]
        return without, len(old)

    def applied(self, num_cleared: int, num_tokens: int) -> AppliedEdit | None:
        """See ClearToolUses."""
        return ClearedThinking(num_cleared, num_tokens)


class InputTokens(Body):
    """A number of prompt tokens."""

    type: Literal["input_tokens"]
    value: Annotated[Int32, Field(ge=0)]


class ToolUses(Body):
    """A number of tool calls."""

    type: Literal["tool_uses"]
    value: Annotated[Int32, Field(ge=0)]


type ToolNames = Annotated[list[str], FailFast(), Field(max_length=MAX_TOOLS)]


class ClearToolUses(Body):
    """Removes the results of older tool calls.

    trigger: threshold that the conversation must exceed. keep: number of last calls to keep.
    clear_at_least: tokens that must be saved, otherwise nothing is removed. exclude_tools: tools
    whose results are kept. clear_tool_inputs: whether to remove the inputs of those calls too, or
    of which tools.
    """

    type: Literal["clear_tool_uses_20250919"]
    trigger: Annotated[
        Annotated[InputTokens, Tag("(input_tokens)")] | Annotated[ToolUses, Tag("(tool_uses)")],
        by_type("an object of type input_tokens or tool_uses"),
    ] = InputTokens(type="input_tokens", value=100_000)
    keep: ToolUses = ToolUses(type="tool_uses", value=3)
    clear_at_least: InputTokens | None = None
    exclude_tools: ToolNames = Field(default_factory=list)
    clear_tool_inputs: bool | ToolNames = False

    def cleared(self, conversation: Conversation) -> tuple[Messages, int]:
        """Return the edited messages, and the number of calls whose results were removed.

        Nothing is removed below the trigger. Results that an earlier edit removed do not count.
        """
        messages, calls = conversation.messages, conversation.calls
        is_due = (
            len(calls) > self.trigger.value
            if isinstance(self.trigger, ToolUses)
            else conversation.num_tokens > self.trigger.value
        )
        if not is_due:
            return messages, 0
        old = {
            call["id"]
            for call in calls[: max(0, len(calls) - self.keep.value)]
            if call["function"]["name"] not in self.exclude_tools
        }
        results = {
            message["tool_call_id"]
            for message in messages
            if message["role"] == "tool" and message["content"] != CLEARED
        }
        ids = old & results
        return [self._without(message, ids) for message in messages], len(ids)

    def applied(self, num_cleared: int, num_tokens: int) -> AppliedEdit | None:
        """Return a report of the edit; None if it would save too few tokens."""
        least = 0 if self.clear_at_least is None else self.clear_at_least.value
        return ClearedToolUses(num_cleared, num_tokens) if num_tokens >= least else None

    def _without(self, message: dict[str, Any], ids: set[str]) -> dict[str, Any]:
        """Return a message without the results of calls, and optionally without their inputs."""
        if message.get("tool_call_id") in ids:
            return {**message, "content": CLEARED}
        if "tool_calls" not in message:
            return message
        calls = [
            {**call, "function": {**call["function"], "arguments": "{}"}}
            if call["id"] in ids and self._clears_input(call["function"]["name"])
            else call
            for call in message["tool_calls"]
        ]
        return {**message, "tool_calls": calls}

    def _clears_input(self, tool: str) -> bool:
        names = self.clear_tool_inputs
        return names if isinstance(names, bool) else tool in names


class Compact(Dropped):
    """Summarises a long conversation. This server never does so."""

    type: Literal["compact_20260112"]


type Edit = Annotated[
    Annotated[ClearThinking, Tag("(clear_thinking_20251015)")]
    | Annotated[ClearToolUses, Tag("(clear_tool_uses_20250919)")]
    | Annotated[Compact, Tag("(compact_20260112)")],
    by_type(
        "an edit of type clear_thinking_20251015 or clear_tool_uses_20250919: others are not"
        " supported"
    ),
]


class ContextManagement(Body):
    """Edits of the conversation before the model reads it."""

    edits: Annotated[list[Edit], FailFast(), Field(max_length=MAX_EDITS)] = Field(
        default_factory=list
    )


def edited(
    messages: Messages, edits: Sequence[Edit], count: Callable[[Messages], int]
) -> tuple[Messages, list[AppliedEdit]]:
    """Return a chat's edited messages, and a report of each edit that had an effect.

    count: returns the number of tokens of a prompt with the given messages.
    """
    conversation = Conversation(messages, count)
    applied: list[AppliedEdit] = []
    for edit in edits:
        if isinstance(edit, Compact):
            continue
        cleared, num_cleared = edit.cleared(conversation)
        if not num_cleared:
            continue
        shorter = Conversation(cleared, count)
        report = edit.applied(num_cleared, max(0, conversation.num_tokens - shorter.num_tokens))
        if report is not None:
            conversation = shorter
            applied.append(report)
    return conversation.messages, applied
