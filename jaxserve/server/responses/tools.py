"""Tools of /v1/responses, and their conversion to the tools of a chat.

In the chat, the name of a tool in a namespace is prefixed with that of the namespace.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import FailFast, Field, Tag

from jaxserve.frontend.schema.body import Body, by_type
from jaxserve.frontend.schema.fields import Unread
from jaxserve.frontend.tools import (
    FUNCTION_NAME,
    MAX_TOOLS,
    AnyText,
    Function,
    Grammar,
    HostedTool,
    TextTool,
    tool_kind,
)

TOOL_HINTS = Unread(ignored=frozenset({"defer_loading"}))


class FunctionTool(Function):
    """A function. `defer_loading` has no effect: the model sees all functions."""

    unread = TOOL_HINTS

    type: Literal["function"]

    @property
    def function(self) -> Function:
        """The function of the chat."""
        return self


class GrammarText(Grammar):
    """Text that matches a grammar."""

    type: Literal["grammar"]


type TextForm = Annotated[
    Annotated[AnyText, Tag("(text)")] | Annotated[GrammarText, Tag("(grammar)")],
    by_type("an object of type text or grammar"),
]


class CustomTool(TextTool):
    """A custom tool, whose input is text."""

    unread = TOOL_HINTS

    type: Literal["custom"]
    format: TextForm | None = None

    @property
    def grammar(self) -> Grammar | None:
        """Grammar of the text; None for any text."""
        return self.format if isinstance(self.format, Grammar) else None


type OwnTool = Annotated[
    Annotated[FunctionTool, Tag("(function)")] | Annotated[CustomTool, Tag("(custom)")],
    by_type("a tool of type function or custom"),
]


class Namespace(Body):
    """Tools in a namespace."""

    type: Literal["namespace"]
    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    description: str | None = None
    tools: Annotated[list[OwnTool], FailFast(), Field(max_length=MAX_TOOLS)]


type AnyTool = Annotated[
    Annotated[FunctionTool, Tag("(function)")]
    | Annotated[CustomTool, Tag("(custom)")]
    | Annotated[Namespace, Tag("(namespace)")]
    | Annotated[HostedTool, Tag("(hosted)")],
    by_type("a tool of type function, custom or namespace", kind_of=tool_kind),
]


@dataclass(frozen=True, slots=True)
class Target:
    """The tool that a function of the chat stands for."""

    name: str
    namespace: str | None = None
    is_custom: bool = False


def flat_name(name: str, namespace: str | None) -> str:
    """Return the name of the function in the chat."""
    return name if namespace is None else f"{namespace}__{name}"


def _flat(tools: Iterable[AnyTool]) -> Iterable[tuple[FunctionTool | CustomTool, str | None]]:
    """Yield the tools that the model may call, with their namespaces."""
    for tool in tools:
        match tool:
            case Namespace():
                yield from ((inner, tool.name) for inner in tool.tools)
            case FunctionTool() | CustomTool():
                yield tool, None


def targets(tools: Sequence[AnyTool]) -> dict[str, Target]:
    """Return the tools that the functions of the chat stand for, by function name."""
    return {
        flat_name(tool.name, namespace): Target(tool.name, namespace, tool.type == "custom")
        for tool, namespace in _flat(tools)
    }


def chat_tools(tools: Sequence[AnyTool]) -> list[dict[str, Any]]:
    """Return the functions of the chat."""
    functions = []
    for tool, namespace in _flat(tools):
        function = tool.function.model_dump(exclude={"type"}, exclude_none=True)
        function["name"] = flat_name(tool.name, namespace)
        functions.append({"type": "function", "function": function})
    return functions
