"""Request schema of POST /v1/completions."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from jaxserve.api.sampling_params import SamplingParams
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.generation_defaults import GenerationDefaults
from jaxserve.frontend.schema.body import MAX_TOKEN_IDS, Int32, TokenIds, limits_schema, wanted
from jaxserve.frontend.schema.generation import GenerationBody
from jaxserve.frontend.schema.parsing import show

MAX_CHOICES = 256
# OpenAI's limit for embedding inputs. Completions also have the limit of choices.
MAX_PROMPTS = 2048
DEFAULT_MAX_TOKENS = 16

type Prompt = str | tuple[int, ...]
# A prompt in token ids, as in the JSON body.
type SomeIds = Annotated[TokenIds, Field(min_length=1)]
type Prompts = (
    str
    | Annotated[list[str], Field(min_length=1)]
    | SomeIds
    | Annotated[list[SomeIds], Field(min_length=1)]
)


def read_prompts(value: Any) -> list[Prompt]:
    """Validate a string, strings, token ids, or lists of token ids; return a list of prompts."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise wanted("a string, strings, token ids, or lists of token ids")
    if len(value) > MAX_TOKEN_IDS:
        raise wanted(f"at most {MAX_TOKEN_IDS} token ids")
    # Compare exact types (bool is not int here), in one pass that is fast on long prompts.
    kinds = set(map(type, value))
    if kinds != {int} and len(value) > MAX_PROMPTS:
        raise wanted(f"at most {MAX_PROMPTS} prompts")
    if kinds == {str}:
        return [*value]
    if kinds == {int}:
        return [tuple(value)]
    if kinds == {list} and all(set(map(type, ids)) <= {int} for ids in value):
        return [tuple(ids) for ids in value]
    raise wanted("a string, strings, token ids, or lists of token ids" if value else "not empty")


class CompletionBody(GenerationBody):
    """One or more prompts to continue.

    max_tokens: 0 together with `echo` returns only the prompt.
    """

    prompt: Annotated[list[Prompt], BeforeValidator(read_prompts, json_schema_input_type=Prompts)]
    max_tokens: Annotated[Int32, limits_schema("max_tokens", minimum=0)] | None = None
    logprobs: Annotated[int, limits_schema("logprobs")] | None = None
    add_special_tokens: bool = True

    @property
    def only_scores(self) -> bool:
        """Whether the request generates nothing, and only scores the prompt."""
        return self.echo and self.max_tokens == 0

    def check(self) -> None:
        """Raise InvalidRequestError for fields that cannot be combined."""
        super().check()
        if len(self.prompt) * self.n > MAX_CHOICES:
            raise InvalidRequestError(
                f"n times the number of prompts must be at most {MAX_CHOICES},"
                f" got {show(self.n)} times {len(self.prompt)}",
                param="n",
            )
        if self.logprob_token_ids and self.logprobs is None:
            raise InvalidRequestError(
                "logprob_token_ids can only be given with logprobs", param="logprob_token_ids"
            )
        if self.logprob_token_ids and self.only_scores:
            raise InvalidRequestError(
                "logprob_token_ids cannot be given with echo=true and max_tokens=0, which generate"
                " no token",
                param="logprob_token_ids",
            )
        if self.use_beam_search and self.echo and self.logprobs is not None:
            raise InvalidRequestError(
                "echo with logprobs cannot be given with use_beam_search=true", param="echo"
            )
        if self.stream and self.echo and self.logprobs is not None and self.n > 1:
            raise InvalidRequestError(
                f"echo with logprobs can only be streamed with n=1, got n={self.n}", param="n"
            )

    def params(self, defaults: GenerationDefaults) -> SamplingParams:
        """Return the engine's parameters for each prompt."""
        max_tokens = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        wants_scores = self.echo and self.logprobs is not None
        return self.sampling_params(
            defaults,
            # The engine always samples a token, which the answer leaves out.
            max_tokens=1 if self.only_scores else max_tokens,
            logprobs=self.logprobs,
            prompt_logprobs=self.logprobs if wants_scores else self.prompt_logprobs,
        )
