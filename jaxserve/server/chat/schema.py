"""Request schema of POST /v1/chat/completions."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from jaxserve.api.sampling_params import SamplingParams
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.chat import Chat
from jaxserve.frontend.generation_defaults import GenerationDefaults
from jaxserve.frontend.response_parser import ResponseParserConfig
from jaxserve.frontend.schema.body import (
    INT32_MAX,
    Int32,
    limits_schema,
)
from jaxserve.frontend.schema.generation import GenerationBody
from jaxserve.frontend.schema.parsing import renamed
from jaxserve.server.models import ServedModel


class ChatGeneration(GenerationBody):
    """Generation fields that only chats have."""

    logprobs: bool = False
    top_logprobs: Annotated[int, limits_schema("logprobs")] = 0
    max_completion_tokens: Annotated[Int32, limits_schema("max_tokens")] | None = None
    parallel_tool_calls: bool = True
    include_reasoning: bool = True
    thinking_token_budget: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None


class ChatBody(Chat, ChatGeneration):
    """A chat to continue.

    takes_any_budget: whether a model without a reasoning parser ignores thinking_token_budget
    instead of refusing it.
    """

    takes_any_budget: ClassVar[bool] = False

    def check(self) -> None:
        """Raise InvalidRequestError for combinations of fields that are not valid."""
        super().check()
        self.check_tools()
        for name in ("top_logprobs", "logprob_token_ids"):
            if getattr(self, name) and not self.logprobs:
                raise InvalidRequestError(
                    f"{name} can only be given with logprobs=true", param=name
                )

    @property
    def has_limit(self) -> bool:
        """Whether the request limits the length of the answer."""
        return super().has_limit or self.max_completion_tokens is not None

    @property
    def field_names(self) -> dict[str, str]:
        """Names of the body's fields, by the names of the engine's parameters."""
        limit = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        return {
            **super().field_names,
            "prompt": "messages",
            "max_tokens": limit,
            "logprobs": "top_logprobs",
        }

    @property
    def echoed(self) -> str:
        """Text to put before the answer with `echo`: the assistant's message that it continues."""
        return self.last_text if self.echo and self.messages[-1].role == "assistant" else ""

    def parser_config(self, model: ServedModel, prompt_ids: Sequence[int]) -> ResponseParserConfig:
        """Return how to parse the answers of a model to the rendered prompt."""
        return ResponseParserConfig.of(
            self,
            prompt_ids,
            answers=model.answers,
            tokenizer=model.tokenizer,
            skip_special_tokens=self.skip_special_tokens,
            include_reasoning=self.include_reasoning,
            parallel_tool_calls=self.parallel_tool_calls,
        )

    def params(self, defaults: GenerationDefaults) -> SamplingParams:
        """Return the sampling parameters; without a limit the answer may fill the context."""
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
