"""Build the engine's requests from bodies: render, tokenize and validate on worker threads."""

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from jaxserve.access.principal import Principal
from jaxserve.api.engine_config import DEFAULT_MAX_LOGPROBS
from jaxserve.api.request import LOWEST_PRIORITY, Request
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.api.structured_outputs import StructuredOutputsParams
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.chat import Chat
from jaxserve.frontend.schema.ignored import IgnoredFields
from jaxserve.frontend.schema.parsing import renamed
from jaxserve.frontend.tool_constraints import BUDGET_NAMES, FIELD_NAMES, constrain
from jaxserve.server.chat.schema import ChatBody
from jaxserve.server.completions.schema import CompletionBody
from jaxserve.server.models import ServedModel
from jaxserve.tokenization.tokenizer import truncated

# Limit on the log-probabilities in an answer, about 60 bytes of JSON each. It applies to those of
# the prompt, and to those of generated tokens above DEFAULT_MAX_LOGPROBS per token.
MAX_LOGPROBS_PER_ANSWER = 2**20


def encode(
    model: ServedModel,
    text: str,
    *,
    add_special_tokens: bool,
    param: str,
    takes_any_length: bool = False,
) -> tuple[int, ...]:
    """Return the token ids of a text. Slow; call it on a worker thread.

    Raises ContextLengthError for a text that is too long, unless `takes_any_length`.
    """
    if not takes_any_length:
        model.tokenizer.check_num_chars(len(text), max_model_len=model.max_model_len, param=param)
    return model.tokenizer.encode(text, add_special_tokens=add_special_tokens)


def encode_chat(
    model: ServedModel,
    chat: Chat,
    ignored: IgnoredFields | None = None,
    *,
    takes_any_length: bool = False,
) -> tuple[int, ...]:
    """Return the token ids of a chat's prompt. Slow; call it on a worker thread.

    ignored: collects the chat_template_kwargs that the template does not read.
    """
    if not takes_any_length:
        model.tokenizer.check_num_chars(
            chat.num_chars(), max_model_len=model.max_model_len, param="messages"
        )
    template = model.chat_template(chat.chat_template)
    text = chat.render(template, ignored, reasoning=model.answers.reasoning)
    return encode(
        model,
        text,
        add_special_tokens=chat.add_special_tokens,
        param="messages",
        takes_any_length=takes_any_length,
    )


@dataclass(slots=True, kw_only=True)
class RequestMaker:
    """Builds the requests of one body.

    ignored: see encode_chat. is_batch: whether the request is a line of a batch. arrival_s: when
    the server began to process the body. grammars: structured outputs built by `requests`, in the
    order in which to check them, each with the names of its fields in the body.
    """

    model: ServedModel
    body: ChatBody | CompletionBody
    cache_salt: str
    ignored: IgnoredFields
    is_batch: bool = False
    arrival_s: float = field(default_factory=time.monotonic)
    grammars: list[tuple[StructuredOutputsParams, Mapping[str, str]]] = field(
        init=False, default_factory=list[tuple[StructuredOutputsParams, Mapping[str, str]]]
    )

    def __post_init__(self) -> None:
        self.model.checked_priority(self.body.priority)

    def requests(self) -> tuple[Request, ...]:
        """Return a request for each prompt of the body. Slow; call it on a worker thread.

        Raises InvalidRequestError. Grammars that must be compiled are left to `check_grammars`.
        """
        requests = self._requests()
        if all(self.model.grammars.is_known(params) for params, _ in self.grammars):
            self.check_grammars()
            self.grammars.clear()
        return requests

    def _requests(self) -> tuple[Request, ...]:
        body = self.body
        body.check()
        params = body.params(self.model.defaults)
        truncates = body.truncate_prompt_tokens is not None
        if isinstance(body, ChatBody):
            with renamed(body.field_names):
                prompt_ids = encode_chat(self.model, body, self.ignored, takes_any_length=truncates)
                return (self._make(prompt_ids, self._chat_params(body, params, prompt_ids)),)
        self.model.check_num_prompts(len(body.prompt), param="prompt")
        if params.structured_outputs is not None:
            self.grammars.append((params.structured_outputs, {}))
        special = body.add_special_tokens
        return tuple(
            self._make(
                prompt
                if isinstance(prompt, tuple)
                else encode(
                    self.model,
                    prompt,
                    add_special_tokens=special,
                    param="prompt",
                    takes_any_length=truncates,
                ),
                params,
            )
            for prompt in body.prompt
        )

    def check_grammars(self) -> None:
        """Raise InvalidRequestError for invalid grammars. Slow, because it compiles them."""
        for params, names in self.grammars:
            with renamed(self.body.field_names), renamed(names):
                self.model.grammars.check(params)

    def _chat_params(
        self, body: ChatBody, params: SamplingParams, prompt_ids: tuple[int, ...]
    ) -> SamplingParams:
        """Return the sampling parameters of a chat, with the constraints on its answers."""
        parsing = body.parser_config(self.model, prompt_ids)
        requested, names = params.structured_outputs, FIELD_NAMES
        if requested is not None and not body.must_call:
            if body.offered_functions:
                # Check it separately, so that later errors are attributed to the tools.
                self.grammars.append((requested, {}))
            else:
                names = BUDGET_NAMES
        budget = body.thinking_token_budget
        if body.takes_any_budget and parsing.form.reasoning is None:
            budget = None
        with renamed(names):
            constraints = constrain(body, parsing, requested, max_reasoning_tokens=budget)
        if constraints is not None:
            self.grammars.append((constraints, names))
        return replace(parsing.params(params), structured_outputs=constraints)

    def _make(self, prompt_ids: tuple[int, ...], params: SamplingParams) -> Request:
        limit = self.body.truncate_prompt_tokens
        if limit == -1:
            room = self.model.max_model_len - (
                (params.max_tokens if self.body.has_limit else 1) or 1
            )
            limit = max(1, room)
        if limit is not None:
            prompt_ids = truncated(prompt_ids, limit, side=self.body.truncation_side)
        if not self.body.has_limit:
            # A default max_tokens must not cause a long prompt to be refused.
            params = params.within(self.model.max_model_len - len(prompt_ids))
        request = Request(
            # Not the client's own id, because two clients could choose the same.
            id=uuid.uuid4().hex,
            prompt_ids=prompt_ids,
            params=params,
            bad_word_ids=self.model.tokenizer.bad_word_ids(params.bad_words),
            priority=LOWEST_PRIORITY if self.is_batch else self.body.priority,
            cache_salt=self.cache_salt,
            arrival_s=self.arrival_s,
        )
        request.check(
            vocab_size=self.model.vocab_size,
            max_model_len=self.model.max_model_len,
            max_logprobs=self.model.max_logprobs,
        )
        self._check_logprobs(request)
        return request

    def _check_logprobs(self, request: Request) -> None:
        """Raise InvalidRequestError if the answer would contain too many log-probabilities.

        The whole vocabulary for each token would make an answer of hundreds of megabytes, and
        encoding it would delay all other requests.
        """
        params = request.params
        num_prompt = len(request.prompt_ids)
        checks = [("prompt_logprobs", params.prompt_logprobs, num_prompt, "tokens of the prompt")]
        per_token = self._count_of(params.logprobs)
        if per_token > DEFAULT_MAX_LOGPROBS:
            max_tokens = params.max_tokens or self.model.max_model_len - num_prompt
            checks.append(("logprobs", params.logprobs, params.n * max_tokens, "tokens generated"))
        for name, asked, num_tokens, what in checks:
            count = self._count_of(asked)
            if count * num_tokens > MAX_LOGPROBS_PER_ANSWER:
                raise InvalidRequestError(
                    f"{name} times the {what} must be at most {MAX_LOGPROBS_PER_ANSWER},"
                    f" got {count} times {num_tokens}",
                    param=name,
                )

    def _count_of(self, asked: int | None) -> int:
        return self.model.vocab_size if asked == -1 else asked or 0


def cache_salt(principal: Principal, asked: str | None) -> str:
    """Return the prefix cache salt of a request, so that tenants do not share prefixes.

    Otherwise the time to the first token would reveal whether others have sent the same prompt.
    """
    if not principal.tenant:
        return asked or ""
    # A client's salt cannot contain "@" (CACHE_SALT), so it cannot imitate another tenant's.
    return f"{principal.tenant}@{asked or ''}"
