"""Request models of a chat, and its rendering with the model's template."""

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, FailFast, Field

from jaxserve.chat.harmony import Harmony
from jaxserve.chat.reasoning_format import ReasoningFormat
from jaxserve.chat.template import ChatTemplate
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.chat_parts import Content
from jaxserve.frontend.schema.body import Body, given
from jaxserve.frontend.schema.fields import REFUSED, UNREAD, Unread
from jaxserve.frontend.schema.ignored import IgnoredFields
from jaxserve.frontend.schema.parsing import show
from jaxserve.frontend.tools import (
    AllowedToolsChoice,
    CustomTool,
    Function,
    HostedTool,
    NamedCustomTool,
    NamedFunction,
    ToolCalls,
    ToolChoice,
    Tools,
)

MAX_MESSAGES = 4096
MAX_DOCUMENTS = 1024
MAX_TEMPLATE_CHARS = 2**16

# Any role, because models have roles of their own, such as ipython.
ROLE = r"^[a-zA-Z0-9_.-]{1,64}$"
type ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Message(Body):
    """One message of a chat. Fields of answers that some clients send back are ignored."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [{"properties": {"role": {"const": "assistant"}}}, given("content")],
            "if": {"properties": {"role": {"const": "tool"}}},
            "then": given("tool_call_id"),
        }
    )

    unread = Unread(
        ignored=frozenset(
            {"annotations", "cache_control", "provider_specific_fields", "reasoning_details"}
        ),
        refused={name: REFUSED[name] for name in ("audio", "function_call")},
    )

    role: Annotated[str, Field(pattern=ROLE)]
    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: ToolCalls = Field(default_factory=list)
    tool_call_id: str | None = None

    def for_template(self, place: str) -> dict[str, Any]:
        """Return the message as a dict for chat templates. place: its name in errors."""
        if self.content is None and self.role != "assistant":
            raise InvalidRequestError(
                f"{place}.content is required", param=f"{place}.content", code="missing_field"
            )
        if self.tool_call_id is None and self.role == "tool":
            raise InvalidRequestError(
                f"{place}.tool_call_id is required",
                param=f"{place}.tool_call_id",
                code="missing_field",
            )
        message = self.model_dump(exclude={"content", "tool_calls"}, exclude_none=True)
        if isinstance(self.content, str):
            message["content"] = self.content
        elif self.content is None and self.refusal is not None:
            # Templates have no field for refusals.
            message["content"] = self.refusal
        elif self.content is not None:
            parts = [{"type": "text", "text": part.text} for part in self.content]
            message["content"] = parts or ""
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        return message


type Messages = Annotated[list[Message], FailFast(), Field(min_length=1, max_length=MAX_MESSAGES)]


class ChatOptions(Body):
    """Fields that determine how a chat is rendered, apart from its messages."""

    unread = UNREAD

    model: str | None = None
    tools: Tools = Field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    documents: Annotated[list[dict[str, Any]], FailFast(), Field(max_length=MAX_DOCUMENTS)] = Field(
        default_factory=list
    )
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    add_special_tokens: bool = False
    chat_template: Annotated[str, Field(max_length=MAX_TEMPLATE_CHARS)] | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    reasoning_effort: ReasoningEffort | None = None


class Chat(ChatOptions):
    """A chat and its rendering options. Shared by chat completions and /tokenize."""

    messages: Messages

    @property
    def functions(self) -> list[Function]:
        """All declared functions, including those that stand for custom tools."""
        return [tool.function for tool in self.tools if not isinstance(tool, HostedTool)]

    @property
    def custom_tools(self) -> frozenset[str]:
        """Names of the functions that stand for custom tools."""
        return frozenset(tool.custom.name for tool in self.tools if isinstance(tool, CustomTool))

    @property
    def offered_functions(self) -> list[Function]:
        """The functions that the model may call; empty if it must not call any."""
        mode, names = self._choice
        if mode == "none":
            return []
        return [f for f in self.functions if names is None or f.name in names]

    @property
    def must_call(self) -> bool:
        """Whether the answer must be tool calls."""
        return self._choice[0] == "required"

    @property
    def must_call_once(self) -> bool:
        """Whether the answer must be exactly one call, as for a named function."""
        return isinstance(self.tool_choice, NamedFunction | NamedCustomTool)

    @property
    def _choice(self) -> tuple[str, list[str] | None]:
        """The mode (none, auto or required), and the names of allowed functions; None for all."""
        match self.tool_choice:
            case NamedFunction() | NamedCustomTool() as tool:
                return "required", [tool.name]
            case AllowedToolsChoice(allowed_tools=some):
                return some.mode, [tool.name for tool in some.tools]
            case mode:
                return mode, None

    @property
    def last_text(self) -> str:
        """The text of the last message."""
        content = self.messages[-1].content or ""
        return content if isinstance(content, str) else "".join(part.text for part in content)

    @property
    def continues_reasoning(self) -> bool:
        """Whether the answer continues a last message that has reasoning but no content yet."""
        last = self.messages[-1]
        has_reasoning = bool(last.reasoning or last.reasoning_content)
        has_more = bool(self.last_text or last.tool_calls)
        return self.continue_final_message and has_reasoning and not has_more

    def check_tools(self) -> None:
        """Raise InvalidRequestError unless tool_choice matches the tools."""
        names = {function.name for function in self.functions}
        for name in self._choice[1] or ():
            if name not in names:
                raise InvalidRequestError(
                    f"tool_choice must name functions of tools, got {show(name)}",
                    param="tool_choice",
                )
        if self.must_call and not names:
            raise InvalidRequestError(
                "tool_choice can only be required if tools are given", param="tool_choice"
            )

    def num_chars(self) -> int:
        """Return the number of characters in the messages, a lower bound for the prompt."""
        return sum(
            len(message.content)
            if isinstance(message.content, str)
            else sum(len(part.text) for part in message.content or ())
            for message in self.messages
        )

    def render(
        self,
        template: ChatTemplate,
        ignored: IgnoredFields | None = None,
        *,
        reasoning: ReasoningFormat | Harmony | None = None,
    ) -> str:
        """Return the prompt. Raises InvalidRequestError if the template rejects the chat.

        ignored: collects roles and chat_template_kwargs that the template does not read.
        reasoning: the model's format of reasoning, if known.
        """
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidRequestError(
                "continue_final_message and add_generation_prompt cannot both be true",
                param="continue_final_message",
            )
        variables = template.readable(self.chat_template_kwargs)
        if ignored is not None:
            for name in self.chat_template_kwargs.keys() - variables.keys():
                ignored.add(("chat_template_kwargs", name))
        if self.reasoning_effort is not None:
            thinks = self.reasoning_effort != "none"
            for name, value in (
                ("reasoning_effort", self.reasoning_effort),
                # Templates have a switch in place of OpenAI's effort.
                ("enable_thinking", thinks),
                ("thinking", thinks),
            ):
                if name in template.variables:
                    variables.setdefault(name, value)
        chat = [message.for_template(f"messages[{i}]") for i, message in enumerate(self.messages)]
        if ignored is not None:
            ignored.add_roles(template.unread_roles(chat))
        tools = [
            {"type": "function", "function": function.model_dump(exclude_none=True)}
            for function in self.offered_functions
        ]
        render = (
            partial(template.render_reasoning, reasoning=reasoning)
            if self.continues_reasoning
            else partial(
                template.render,
                add_generation_prompt=not self.continue_final_message
                if self.add_generation_prompt is None
                else self.add_generation_prompt,
                continue_final_message=self.continue_final_message,
            )
        )
        return render(
            chat,
            tools=tools,
            documents=self.documents,
            variables=variables,
        )
