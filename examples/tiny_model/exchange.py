"""What the corpus is made of: exchanges of a few messages, and conversations of exchanges."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# A message, or a tool on offer, as OpenAI's chat API has it.
type Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A few messages that end in an answer of the assistant.

    `accepts` tells a right answer to the last question from a wrong one; what it is asked of is
    the text of the assistant's turn, with tool calls as the chat template writes them.
    """

    skill: str
    messages: tuple[Message, ...]  # the last one is the assistant's
    accepts: Callable[[str], bool]
    tools: tuple[Message, ...] = ()

    @property
    def prompt(self) -> list[Message]:
        """The messages before the last answer."""
        return list(self.messages[:-1])


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is rendered by the chat template as one training row."""

    messages: list[Message]
    tools: list[Message] = field(default_factory=list[Message])
