"""Tools of a chat, the choice among them, and past calls of them.

Templates and parsers know functions only. A custom tool, which takes a text, becomes a function of
one string; hosted tools are left out.
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
# Argument that holds the text for a custom tool.
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
    """A grammar of texts."""

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
    """A tool that the model calls with a text."""

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
        """The function that takes the text."""
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
    """A tool that takes a text, as chats declare it."""

    format: TextForm | None = None

    @property
    def grammar(self) -> Grammar | None:
        """The grammar of the text; None for any text."""
        return self.format.grammar if isinstance(self.format, GrammarText) else None


class CustomTool(Body):
    """A tool that takes a text."""

    type: Literal["custom"]
    custom: CustomText

    @property
    def function(self) -> Function:
        """The function that takes the text."""
        return self.custom.function


class HostedTool(Dropped):
    """A tool that this server does not run. The model is not told of it."""

    type: Annotated[str, Field(pattern=f"^({'|'.join(HOSTED)})$")]


def tool_kind(kind: str) -> str:
    """Return `hosted` for the type of a tool that OpenAI's servers run, other types as they are."""
    return "hosted" if kind in HOSTED else kind


type Tool = Annotated[
    Annotated[FunctionTool, Tag("(function)")]
    | Annotated[CustomTool, Tag("(custom)")]
    | Annotated[HostedTool, Tag("(hosted)")],
    by_type("a tool of type function or custom", kind_of=tool_kind),
]
type Tools = Annotated[list[Tool], FailFast(), Field(max_length=MAX_TOOLS)]


class ToolName(Body):
    """A tool by its name."""

    name: str


class NamedFunction(Body):
    """A function that must be called, or may be."""

    type: Literal["function"]
    function: ToolName

    @property
    def name(self) -> str:
        """Its name."""
        return self.function.name


class NamedCustomTool(Body):
    """A custom tool that must be called, or may be."""

    type: Literal["custom"]
    custom: ToolName

    @property
    def name(self) -> str:
        """Its name."""
        return self.custom.name


type NamedTool = Annotated[
    Annotated[NamedFunction, Tag("(function)")] | Annotated[NamedCustomTool, Tag("(custom)")],
    by_type("a function or custom tool by its name: this server runs no tools of its own"),
]


class AllowedTools(Body):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], FailFast(), Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolsChoice(Body):
    """The choice among some of the tools."""

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
    """The call of a function, as a model made it before."""

    name: str
    arguments: str


class CustomCall(Body):
    """The call of a custom tool, as a model made it before."""

    name: str
    input: str


# Left over from the deltas of a stream.
CALL_HINTS = Unread(ignored=frozenset({"index"}))


class FunctionToolCall(Body):
    """The call of a function in an assistant's message. Some clients leave its type out."""

    unread = CALL_HINTS

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall

    def for_template(self) -> dict[str, Any]:
        """Return the call as chat templates read it."""
        return self.model_dump()


class CustomToolCall(Body):
    """The call of a custom tool in an assistant's message."""

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
    """Return the arguments of a function, as JSON text, that mean the text of a custom tool."""
    return msgspec.json.encode({INPUT: text}).decode()


def text_of(arguments: str) -> str:
    """Return the text that the arguments of a function mean, as a custom tool takes it.

    Arguments of another form, which a model may write where nothing constrains it, are the text.
    """
    if f'{{"{INPUT}":"'.startswith("".join(arguments.split())):
        # Cut before the text begins.
        return ""
    try:
        value = pydantic_core.from_json(arguments, allow_partial="trailing-strings")
    except ValueError:
        return arguments
    text = value.get(INPUT) if isinstance(value, Mapping) else None
    return text if isinstance(text, str) else arguments
