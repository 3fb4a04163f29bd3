"""The body of POST /v1/chat/completions."""

from typing import Annotated, ClassVar

from pydantic import Field

from jaxserve.api.sampling_params import SamplingParams
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.chat import Chat
from jaxserve.frontend.generation_defaults import GenerationDefaults
from jaxserve.frontend.schema.body import (
    INT32_MAX,
    Int32,
    told,
)
from jaxserve.frontend.schema.generation import GenerationBody
from jaxserve.frontend.schema.parsing import renamed


class ChatGeneration(GenerationBody):
    """What is wanted of a chat's answer, beside what all generated texts have."""

    logprobs: bool = False
    top_logprobs: Annotated[int, told("logprobs")] = 0
    max_completion_tokens: Annotated[Int32, told("max_tokens")] | None = None
    parallel_tool_calls: bool = True
    include_reasoning: bool = True
    thinking_token_budget: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None


class ChatBody(Chat, ChatGeneration):
    """A chat to be continued."""

    takes_any_budget: ClassVar[bool] = False

    def check(self) -> None:
        """Raise InvalidRequestError for fields that are right alone and wrong together."""
        super().check()
        self.check_tools()
        for name in ("top_logprobs", "logprob_token_ids"):
            if getattr(self, name) and not self.logprobs:
                raise InvalidRequestError(
                    f"{name} can only be given with logprobs=true", param=name
                )

    @property
    def has_limit(self) -> bool:
        """Whether the request itself says how long the answer may be."""
        return super().has_limit or self.max_completion_tokens is not None

    @property
    def field_names(self) -> dict[str, str]:
        """What the engine's parameters are called in this body."""
        limit = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        return {
            **super().field_names,
            "prompt": "messages",
            "max_tokens": limit,
            "logprobs": "top_logprobs",
        }

    @property
    def echoed(self) -> str:
        """The text that `echo` puts before an answer: the assistant's message it continues."""
        return self.last_text if self.echo and self.messages[-1].role == "assistant" else ""

    def params(self, defaults: GenerationDefaults) -> SamplingParams:
        """Return the engine's parameters; without a limit the answer may fill the context."""
        max_tokens = self.max_completion_tokens
        if max_tokens is None:
            max_tokens = self.max_tokens
        with renamed(self.field_names):
            return self.sampling_params(
                defaults,
                max_tokens=defaults.max_new_tokens if max_tokens is None else max_tokens,
                logprobs=self.top_logprobs if self.logprobs else None,
                prompt_logprobs=self.prompt_logprobs,
            )
