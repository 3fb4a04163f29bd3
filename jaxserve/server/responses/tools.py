"""The tools of /v1/responses, and the functions of a chat that they are.

A chat has functions only. Those of a namespace have its name before theirs; a custom tool, which
takes text, is a function of one string.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import pydantic_core
from pydantic import ConfigDict, Discriminator, FailFast, Field, Tag

from jaxserve.api.structured_outputs import MAX_BYTES
from jaxserve.frontend.chat import FUNCTION_NAME, MAX_TOOLS
from jaxserve.frontend.schema.body import Body, by_type
from jaxserve.frontend.schema.fields import Unread
from jaxserve.frontend.schema.ignored import Place
from jaxserve.grammar import lark_pattern

# Types of tools that OpenAI's servers run, or that its models know by heart.
HOSTED = (
    "apply_patch",
    "code_interpreter",
    "computer",
    "computer_use",
    "computer_use_preview",
    "file_search",
    "image_generation",
    "local_shell",
    "mcp",
    "programmatic_tool_calling",
    "shell",
    "tool_search",
    "web_search",
    "web_search_2025_08_26",
    "web_search_preview",
    "web_search_preview_2025_03_11",
)
OWN = frozenset({"custom", "function", "namespace"})
TOOL_HINTS = Unread(ignored=frozenset({"defer_loading"}))
# What a custom tool's text is called among a function's arguments.
INPUT = "input"


class FunctionTool(Body):
    """A function that the model may call; all are sent to it, whatever `defer_loading` says."""

    unread = TOOL_HINTS

    type: Literal["function"]
    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class AnyText(Body):
    """Any text."""

    type: Literal["text"]


class GrammarText(Body):
    """Text that follows a grammar."""

    type: Literal["grammar"]
    syntax: Literal["lark", "regex"]
    definition: Annotated[str, Field(min_length=1, max_length=MAX_BYTES)]


type TextForm = Annotated[
    Annotated[AnyText, Tag("(text)")] | Annotated[GrammarText, Tag("(grammar)")],
    by_type("an object of type text or grammar"),
]


class CustomTool(Body):
    """A tool that the model may call with a text."""

    unread = TOOL_HINTS

    type: Literal["custom"]
    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    description: str | None = None
    format: TextForm | None = None


type OwnTool = Annotated[
    Annotated[FunctionTool, Tag("(function)")] | Annotated[CustomTool, Tag("(custom)")],
    by_type("a tool of type function or custom"),
]


class Namespace(Body):
    """Tools under a name of their own."""

    type: Literal["namespace"]
    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    description: str | None = None
    tools: Annotated[list[OwnTool], FailFast(), Field(max_length=MAX_TOOLS)]


class HostedTool(Body):
    """A tool that this server does not run. The model is not told of it."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, Field(pattern=f"^({'|'.join(HOSTED)})$")]


def _kind(tool: object) -> str | None:
    kind = tool.get("type") if isinstance(tool, dict) else getattr(tool, "type", None)
    return f"({'hosted' if isinstance(kind, str) and kind not in OWN else kind})"


type AnyTool = Annotated[
    Annotated[FunctionTool, Tag("(function)")]
    | Annotated[CustomTool, Tag("(custom)")]
    | Annotated[Namespace, Tag("(namespace)")]
    | Annotated[HostedTool, Tag("(hosted)")],
    Discriminator(
        _kind,
        custom_error_type="wanted",
        custom_error_message="wanted",
        custom_error_context={"wanted": "a tool of type function, custom or namespace"},
    ),
]


@dataclass(frozen=True, slots=True)
class Target:
    """What a call of a chat's function is a call of."""

    name: str
    namespace: str | None = None
    is_custom: bool = False


def flat_name(name: str, namespace: str | None) -> str:
    """Return what the function of a chat is called."""
    return name if namespace is None else f"{namespace}__{name}"


def _flat(tools: Iterable[AnyTool]) -> Iterable[tuple[FunctionTool | CustomTool, str | None]]:
    """Yield the tools that the model may call, each with its namespace."""
    for tool in tools:
        match tool:
            case Namespace():
                yield from ((inner, tool.name) for inner in tool.tools)
            case FunctionTool() | CustomTool():
                yield tool, None


def targets(tools: Sequence[AnyTool]) -> dict[str, Target]:
    """Return what the functions of the chat are, by their names there."""
    return {
        flat_name(tool.name, namespace): Target(tool.name, namespace, tool.type == "custom")
        for tool, namespace in _flat(tools)
    }


def chat_tools(tools: Sequence[AnyTool]) -> list[dict[str, Any]]:
    """Return the functions of the chat."""
    functions = []
    for tool, namespace in _flat(tools):
        if isinstance(tool, CustomTool):
            function = _function_of(tool)
        else:
            function = tool.model_dump(exclude={"type"}, exclude_none=True)
        function["name"] = flat_name(tool.name, namespace)
        functions.append({"type": "function", "function": function})
    return functions


def unread_tools(tools: Sequence[AnyTool]) -> list[Place]:
    """Return the places of tools that are not run here, and of forms that bind no text."""
    unread: list[Place] = []
    for index, tool in enumerate(tools):
        if isinstance(tool, HostedTool):
            unread.append(("tools", index, tool.type))
        elif any(
            isinstance(inner, CustomTool)
            and isinstance(inner.format, GrammarText)
            and _pattern(inner) is None
            for inner, _ in _flat([tool])
        ):
            unread.append(("tools", index, "format"))
    return unread


def arguments_of(text: str) -> str:
    """Return the arguments of a function, as JSON text, that mean the text of a custom tool."""
    return msgspec.json.encode({INPUT: text}).decode()


def text_of(arguments: str) -> str:
    """Return the text that the arguments of a function mean, as a custom tool takes it.

    Arguments of another form, which a model may write where nothing binds it, are the text.
    """
    try:
        value = pydantic_core.from_json(arguments, allow_partial="trailing-strings")
    except ValueError:
        return arguments
    text = value.get(INPUT) if isinstance(value, Mapping) else None
    return text if isinstance(text, str) else arguments


def _pattern(tool: CustomTool) -> str | None:
    """Return the regular expression of a custom tool's text; None if nothing binds it."""
    match tool.format:
        case GrammarText(syntax="regex", definition=pattern):
            return pattern
        case GrammarText(definition=grammar):
            return lark_pattern(grammar)
    return None


def _function_of(tool: CustomTool) -> dict[str, Any]:
    """Return the function that takes the text of a custom tool, without its name."""
    text: dict[str, Any] = {"type": "string"}
    described = [tool.description] if tool.description else []
    if isinstance(tool.format, GrammarText):
        form = tool.format
        described.append(f"The input follows this {form.syntax} grammar:\n{form.definition}")
    pattern = _pattern(tool)
    if pattern is not None:
        text["pattern"] = f"^(?:{pattern})$"
    schema = {"type": "object", "properties": {INPUT: text}, "required": [INPUT]}
    return {
        "description": "\n\n".join(described),
        "parameters": schema | {"additionalProperties": False},
        "strict": pattern is not None,
    }
