"""The `context_management` of /v1/messages: what the model does not read of a conversation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import FailFast, Field, Tag

from jaxserve.frontend.schema.body import Body, Dropped, Int32, by_type
from jaxserve.frontend.tools import MAX_TOOLS
from jaxserve.server.messages.answers import AppliedEdit, ClearedThinking, ClearedToolUses

MAX_EDITS = 16
# What the model reads instead of a result.
CLEARED = "[This tool result was cleared.]"

type Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Conversation:
    """A chat's messages, and what counts the tokens of the prompt that messages make."""

    messages: Messages
    count: Callable[[Messages], int]

    @cached_property
    def num_tokens(self) -> int:
        """The length of the prompt. Slow: it is rendered and encoded."""
        return self.count(self.messages)

    @property
    def calls(self) -> list[dict[str, Any]]:
        """All calls of tools, in their order."""
        return [call for message in self.messages for call in message.get("tool_calls", ())]


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
    """Tokens of the prompt."""

    type: Literal["input_tokens"]
    value: Annotated[Int32, Field(ge=0)]


class ToolUses(Body):
    """Calls of tools."""

    type: Literal["tool_uses"]
    value: Annotated[Int32, Field(ge=0)]


type ToolNames = Annotated[list[str], FailFast(), Field(max_length=MAX_TOOLS)]


class ClearToolUses(Body):
    """Leave out the results of older calls.

    trigger: what the conversation must exceed. keep: the last calls, which stay. clear_at_least:
    tokens that must be saved, or nothing is cleared. exclude_tools: tools whose calls stay.
    clear_tool_inputs: whether the inputs of those calls go too, or of which tools.
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
        """Return the messages with less in them, and the number of calls that lost their results.

        Nothing is cleared before the trigger. Results that an earlier edit has cleared do not
        count.
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
        """Return the report of what was cleared; None where it would save too little."""
        least = 0 if self.clear_at_least is None else self.clear_at_least.value
        return ClearedToolUses(num_cleared, num_tokens) if num_tokens >= least else None

    def _without(self, message: dict[str, Any], ids: set[str]) -> dict[str, Any]:
        """Return a message without the results, and maybe the inputs, of calls."""
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
    """Summarise the conversation when it becomes long. This server never does."""

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
    """What to leave out of the conversation before the model reads it."""

    edits: Annotated[list[Edit], FailFast(), Field(max_length=MAX_EDITS)] = Field(
        default_factory=list
    )


def edited(
    messages: Messages, edits: Sequence[Edit], count: Callable[[Messages], int]
) -> tuple[Messages, list[AppliedEdit]]:
    """Return a chat's messages after edits, and what each edit that did something cleared.

    count: returns the tokens of the prompt that messages make.
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
