"""The models that a server serves, and the choice of the one that answers a request."""

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from jaxserve import __version__
from jaxserve.api.engine_config import DEFAULT_MAX_LOGPROBS, DEFAULT_MAX_QUEUED_REQUESTS
from jaxserve.api.pooling import PoolingModel
from jaxserve.chat.parser import AnswerFormat
from jaxserve.chat.template import ChatTemplate
from jaxserve.client import EngineClient
from jaxserve.errors import CheckpointError, InvalidRequestError, ModelNotFoundError
from jaxserve.frontend.generation_defaults import GenerationDefaults
from jaxserve.grammar import GrammarChecker
from jaxserve.server.errors import LoadingError
from jaxserve.tokenization.tokenizer import Tokenizer

# Requests of one answer that the engine has at once: its queue is for others, too.
MAX_AT_ONCE = 256
MAX_NAME_CHARS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelChoice:
    """The backend that computes an op, and what others, by name, said they lack."""

    backend: str
    refusals: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model and everything a request to it needs.

    names: what requests may call it, its own name first. chat: None for a model without a chat
    template. vocab_size: width of the model's logits, which may be more than the tokenizer knows.
    grammars: refuses those that no answer can follow. max_logprobs: alternatives a request may
    ask for at each token; logprobs_mode: what they tell. pooling: how it pools prompts, None for a
    model that generates text. has_priorities: whether the scheduler looks at priorities.
    max_queued_requests: that wait in the engine.
    fingerprint: changes whenever the same request could give another answer. answers: how it
    writes reasoning and tool calls.
    trusts_templates: whether requests may bring chat templates of their own. kernels: which
    backend computes each op, for /health.
    """

    names: tuple[str, ...]
    client: EngineClient
    tokenizer: Tokenizer
    chat: ChatTemplate | None
    max_model_len: int
    vocab_size: int
    grammars: GrammarChecker
    max_logprobs: int = DEFAULT_MAX_LOGPROBS
    logprobs_mode: str = "raw_logprobs"
    pooling: PoolingModel | None = None
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    has_priorities: bool = False
    max_queued_requests: int = DEFAULT_MAX_QUEUED_REQUESTS
    fingerprint: str = ""
    answers: AnswerFormat = field(default_factory=AnswerFormat)
    trusts_templates: bool = False
    kernels: Mapping[str, KernelChoice] = field(default_factory=dict[str, KernelChoice])
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def name(self) -> str:
        """The model's own name."""
        return self.names[0]

    def chat_template(self, asked: str | None = None) -> ChatTemplate:
        """Return how the model wants its chats, or the template that a request brings.

        Raises InvalidRequestError when the model takes no chats, and for a template that it may
        not bring or that is none.
        """
        if asked is not None:
            if not self.trusts_templates:
                raise InvalidRequestError(
                    "chat_template is not taken from requests unless the server runs with"
                    " --trust-request-chat-template",
                    param="chat_template",
                    code="unsupported_field",
                )
            try:
                return ChatTemplate(self.tokenizer.with_chat_template(asked))
            except CheckpointError as error:
                raise InvalidRequestError(
                    "chat_template must be a Jinja template", param="chat_template"
                ) from error
        if self.chat is None:
            raise InvalidRequestError(
                f"the model {self.name!r} has no chat template: use /v1/completions",
                param="messages",
            )
        return self.chat

    def checked_priority(self, priority: int) -> int:
        """Return a request's priority; raises InvalidRequestError where there are none."""
        if priority and not self.has_priorities:
            raise InvalidRequestError(
                f"priority must be 0 on a server that schedules by arrival, got {priority}",
                param="priority",
            )
        return priority

    def check_num_prompts(self, count: int, *, param: str) -> None:
        """Raise InvalidRequestError if the queue can never hold so many requests of one answer.

        Of more than MAX_AT_ONCE only that many are in the queue at once.
        """
        if min(count, MAX_AT_ONCE) > self.max_queued_requests:
            raise InvalidRequestError(
                f"{param} must ask for at most {self.max_queued_requests} prompts or beams, which"
                f" is max_queued_requests of this server, got {count}",
                param=param,
            )

    @property
    def system_fingerprint(self) -> str:
        """What answers carry as `system_fingerprint`."""
        known = f"{self.name}\0{self.max_model_len}\0{self.vocab_size}\0{self.fingerprint}"
        return f"jaxserve-{__version__}-{hashlib.sha256(known.encode()).hexdigest()[:8]}"


class ModelRouter:
    """The models of a server by name; picks the one that answers a request.

    Models have numbers, those of their engines; number 0 answers requests that name no model.
    num_expected: models that the server will have once all of them have loaded.
    """

    def __init__(self, models: Iterable[ServedModel] = (), *, num_expected: int = 1) -> None:
        self._num_expected = num_expected
        self._by_number: dict[int, ServedModel] = {}
        self._by_name: dict[str, ServedModel] = {}
        for number, model in enumerate(models):
            self.add(number, model)

    def add(self, number: int, model: ServedModel) -> None:
        """Serve a model from now on, in place of the earlier one of its number."""
        self._by_number[number] = model
        self._by_name = {name: each for each in self._in_order() for name in each.names}

    @property
    def is_loading(self) -> bool:
        """Whether there is nothing to serve yet."""
        return not self._by_number

    @property
    def is_complete(self) -> bool:
        """Whether all expected models have loaded."""
        return len(self._by_number) >= self._num_expected

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """The models that are served, by number; raises LoadingError until there is one."""
        if self.is_loading:
            raise LoadingError
        return self._in_order()

    def model(self, name: str | None) -> ServedModel:
        """Return the model that answers requests for `name`.

        Raises ModelNotFoundError for a name that no model has, and LoadingError while a model that
        still loads may have it.
        """
        model = self._by_number.get(0) if name is None else self._by_name.get(name)
        if model is not None:
            return model
        if name is None or not self.is_complete:
            raise LoadingError
        raise ModelNotFoundError(
            f"the model {name[:MAX_NAME_CHARS]!r} does not exist here;"
            f" there is {', '.join(self._by_name)}"
        )

    def _in_order(self) -> tuple[ServedModel, ...]:
        return tuple(self._by_number[number] for number in sorted(self._by_number))
