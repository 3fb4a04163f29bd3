"""Tools of a chat, the choice among them, and past calls of them.

Templates and parsers support functions only. A custom tool, whose input is a text, becomes a
function with one string parameter. Hosted tools are left out.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

import msgspec
import pydantic_core
from pydantic import FailFast, Field, Tag

from jaxserve.api.structured_outputs import MAX_BYTES
from jaxserve.frontend.schema.body import MAX_PARTS, Body, Dropped, by_type
from jaxserve.frontend.schema.fields import Place, Unread
from jaxserve.grammar import lark_pattern

MAX_TOOLS = 256
FUNCTION_NAME = r"^[a-zA-Z0-9_.-]{1,128}$"
# Types of tools that OpenAI's servers run, or that its models were trained on.
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
# Name of the argument for the input of a custom tool.
INPUT = "input"


class Function(Body):
    """A function that the model may call."""

    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Body):
    """A tool that is a function."""

    type: Literal["function"]
    function: Function


class AnyText(Body):
    """Any text."""

    type: Literal["text"]


class Grammar(Body):
    """A grammar in Lark, or a regular expression."""

    syntax: Literal["lark", "regex"]
    definition: Annotated[str, Field(min_length=1, max_length=MAX_BYTES)]


class GrammarText(Body):
    """Text that follows a grammar."""

    type: Literal["grammar"]
    grammar: Grammar


type TextForm = Annotated[
    Annotated[AnyText, Tag("(text)")] | Annotated[GrammarText, Tag("(grammar)")],
    by_type("an object of type text or grammar"),
]


class TextTool(Body):
    """A tool whose input is a text."""

    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    description: str | None = None

    @property
    def grammar(self) -> Grammar | None:
        """The grammar of the text; None for any text."""
        return None

    @cached_property
    def pattern(self) -> str | None:
        """Regular expression of the text; None if the text cannot be constrained."""
        match self.grammar:
            case None:
                return None
            case Grammar(syntax="regex", definition=pattern):
                return pattern
            case Grammar(definition=definition):
                return lark_pattern(definition)

    @cached_property
    def function(self) -> Function:
        """The equivalent function, with one string parameter."""
        text: dict[str, Any] = {"type": "string"}
        described = [self.description] if self.description else []
        if self.grammar is not None:
            grammar = self.grammar
            described.append(f"The input follows this {grammar.syntax} grammar:")
            described[-1] += f"\n{grammar.definition}"
        if self.pattern is not None:
            text["pattern"] = f"^(?:{self.pattern})$"
        schema = {"type": "object", "properties": {INPUT: text}, "required": [INPUT]}
        return Function(
            name=self.name,
            description="\n\n".join(described),
            parameters=schema | {"additionalProperties": False},
            strict=self.pattern is not None,
        )

    def unread_parts(self) -> Iterable[Place]:
        """Return the place of a grammar that does not constrain the text."""
        return [("format",)] if self.grammar is not None and self.pattern is None else []


class CustomText(TextTool):
    """A tool whose input is a text, as declared in chats."""

    format: TextForm | None = None

    @property
    def grammar(self) -> Grammar | None:
        """The grammar of the text; None for any text."""
        return self.format.grammar if isinstance(self.format, GrammarText) else None


class CustomTool(Body):
    """A custom tool, whose input is a text."""

    type: Literal["custom"]
    custom: CustomText

    @property
    def function(self) -> Function:
        """The equivalent function, with one string parameter."""
        return self.custom.function


class HostedTool(Dropped):
    """A tool that this server does not run, and leaves out of the prompt."""

    type: Annotated[str, Field(pattern=f"^({'|'.join(HOSTED)})$")]


def tool_kind(kind: str) -> str:
    """Return `hosted` for the type of a hosted tool, and other types unchanged."""
    return "hosted" if kind in HOSTED else kind


type Tool = Annotated[
    Annotated[FunctionTool, Tag("(function)")]
    | Annotated[CustomTool, Tag("(custom)")]
    | Annotated[HostedTool, Tag("(hosted)")],
    by_type("a tool of type function or custom", kind_of=tool_kind),
]
type Tools = Annotated[list[Tool], FailFast(), Field(max_length=MAX_TOOLS)]


class ToolName(Body):
    """The name of a tool."""

    name: str


class NamedFunction(Body):
    """A function in tool_choice."""

    type: Literal["function"]
    function: ToolName

    @property
    def name(self) -> str:
        """Name of the function."""
        return self.function.name


class NamedCustomTool(Body):
    """A custom tool in tool_choice."""

    type: Literal["custom"]
    custom: ToolName

    @property
    def name(self) -> str:
        """Name of the custom tool."""
        return self.custom.name


type NamedTool = Annotated[
    Annotated[NamedFunction, Tag("(function)")] | Annotated[NamedCustomTool, Tag("(custom)")],
    by_type("a function or custom tool by its name: this server runs no tools of its own"),
]


class AllowedTools(Body):
    """A subset of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], FailFast(), Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolsChoice(Body):
    """A tool_choice that allows a subset of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


type ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("str")]
    | Annotated[NamedFunction, Tag("(function)")]
    | Annotated[NamedCustomTool, Tag("(custom)")]
    | Annotated[AllowedToolsChoice, Tag("(allowed_tools)")],
    by_type(
        "none, auto, required, a function or custom tool by its name, or allowed_tools with a mode:"
        " this server runs no tools of its own"
    ),
]


class FunctionCall(Body):
    """A function call in an earlier answer."""

    name: str
    arguments: str


class CustomCall(Body):
    """A call of a custom tool in an earlier answer."""

    name: str
    input: str


# Clients may send back the index of streaming deltas.
CALL_HINTS = Unread(ignored=frozenset({"index"}))


class FunctionToolCall(Body):
    """A function call in an assistant message. Some clients leave out the type."""

    unread = CALL_HINTS

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall

    def for_template(self) -> dict[str, Any]:
        """Return the call as chat templates read it."""
        return self.model_dump()


class CustomToolCall(Body):
    """A call of a custom tool in an assistant message."""

    unread = CALL_HINTS

    id: str
    type: Literal["custom"]
    custom: CustomCall

    def for_template(self) -> dict[str, Any]:
        """Return the call as chat templates read it."""
        function = {"name": self.custom.name, "arguments": arguments_of(self.custom.input)}
        return {"id": self.id, "type": "function", "function": function}


type ToolCall = Annotated[
    Annotated[FunctionToolCall, Tag("(function)")] | Annotated[CustomToolCall, Tag("(custom)")],
    by_type("a call of type function or custom", default="function"),
]
type ToolCalls = Annotated[list[ToolCall], FailFast(), Field(max_length=MAX_PARTS)]


def arguments_of(text: str) -> str:
    """Return the JSON arguments of the function that stands for a custom tool.

    text: the input of the custom tool.
    """
    return msgspec.json.encode({INPUT: text}).decode()


def text_of(arguments: str) -> str:
    """Return the input of a custom tool, given the JSON arguments of the function.

    Arguments in any other form, which an unconstrained model may write, are the input themselves.
    """
    if f'{{"{INPUT}":"'.startswith("".join(arguments.split())):
        # The arguments end before the text begins.
        return ""
    try:
        value = pydantic_core.from_json(arguments, allow_partial="trailing-strings")
    except ValueError:
        return arguments
    text = value.get(INPUT) if isinstance(value, Mapping) else None
    return text if isinstance(text, str) else arguments
