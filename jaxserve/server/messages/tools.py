"""Tools of /v1/messages and the choice among them, and their conversion to a chat's."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from jaxserve.frontend.schema.body import Body, Dropped, by_type
from jaxserve.frontend.schema.fields import Unread
from jaxserve.frontend.tools import FUNCTION_NAME

# Types of tools that run on Anthropic's servers or that its models were trained on.
HOSTED_TOOL = (
    r"^(advisor|bash|code_execution|computer|memory|str_replace_based_edit_tool|text_editor"
    r"|tool_search_tool(_bm25|_regex)?|(browser|computer|mcp)_toolset|web_fetch|web_search)"
    r"(_[0-9]{8})?$"
)


class Tool(Body):
    """A function. `defer_loading` has no effect: the model sees all functions."""

    unread = Unread(
        ignored=frozenset(
            {
                "allowed_callers",
                "cache_control",
                "defer_loading",
                "eager_input_streaming",
                "input_examples",
            }
        )
    )

    type: Literal["custom"] = "custom"
    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class HostedTool(Dropped):
    """A tool that Anthropic's servers run, such as `web_search_20250305`. Models do not see it."""

    type: Annotated[str, Field(pattern=HOSTED_TOOL)]
    name: str | None = None


type AnyTool = Annotated[
    Annotated[Tool, Tag("(custom)")] | Annotated[HostedTool, Tag("(hosted)")],
    Discriminator(lambda tool: "(custom)" if _tool_type(tool) in {"custom", None} else "(hosted)"),
]


def _tool_type(tool: object) -> object:
    return tool.get("type") if isinstance(tool, dict) else getattr(tool, "type", None)


class ToolMode(Body):
    """Whether to call a tool: auto, any or none."""

    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool = False


class NamedTool(Body):
    """The tool to call."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool = False


type ToolChoice = Annotated[
    Annotated[ToolMode, Tag("(auto)")]
    | Annotated[ToolMode, Tag("(any)")]
    | Annotated[ToolMode, Tag("(none)")]
    | Annotated[NamedTool, Tag("(tool)")],
    by_type("an object of type auto, any, tool or none"),
]


def chat_tool(tool: Tool) -> dict[str, Any]:
    """Return the tool of a chat."""
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.input_schema,
        "strict": tool.strict,
    }
    return {"type": "function", "function": function}


def chat_tool_choice(choice: ToolChoice) -> dict[str, Any]:
    """Return the fields of a chat for the choice of tools and parallel calls."""
    wanted: Any = {"auto": "auto", "any": "required", "none": "none"}.get(choice.type)
    if isinstance(choice, NamedTool):
        wanted = {"type": "function", "function": {"name": choice.name}}
    return {
        "tool_choice": wanted,
        "parallel_tool_calls": not choice.disable_parallel_tool_use,
    }
