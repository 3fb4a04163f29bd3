"""The models of a server, and the routing of requests to them."""

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

# Maximum number of requests of one answer in the engine at once, so that its queue is not filled.
MAX_AT_ONCE = 256
MAX_NAME_CHARS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelChoice:
    """The backend of an op. refusals: by name, why other backends cannot be used."""

    backend: str
    refusals: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model with everything that its requests need.

    names: names under which it is served, its own name first. chat: the chat template; None if it
    has none. vocab_size: width of the logits, which may exceed the tokenizer's vocabulary.
    grammars: checks structured outputs. max_logprobs: maximum number of alternatives per token.
    logprobs_mode: kind of values reported for them. pooling: None if the model generates text.
    has_priorities: whether the scheduler uses priorities. max_queued_requests: size of the engine's
    queue. fingerprint: changes whenever the same request could get a different answer. answers:
    formats of reasoning and tool calls. trusts_templates: whether requests may contain chat
    templates. kernels: backend of each op, for /health.
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
        """Return the model's chat template, or the one that a request contains.

        Raises InvalidRequestError if the model has no chat template, and if the request's template
        is not allowed or invalid.
        """
        if asked is not None:
            if not self.trusts_templates:
                raise InvalidRequestError(
                    "chat_template is not accepted unless the server runs with"
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
        """Return a request's priority. Raises InvalidRequestError if priorities are disabled."""
        if priority and not self.has_priorities:
            raise InvalidRequestError(
                f"priority must be 0 on a server that schedules by arrival, got {priority}",
                param="priority",
            )
        return priority

    def check_num_prompts(self, count: int, *, param: str) -> None:
        """Raise InvalidRequestError if the requests of one answer cannot fit into the queue.

        At most MAX_AT_ONCE of them are queued at once.
        """
        if min(count, MAX_AT_ONCE) > self.max_queued_requests:
            raise InvalidRequestError(
                f"{param} must have at most {self.max_queued_requests} prompts or beams, the"
                f" max_queued_requests of this server, got {count}",
                param=param,
            )

    @property
    def system_fingerprint(self) -> str:
        """The `system_fingerprint` of answers."""
        known = f"{self.name}\0{self.max_model_len}\0{self.vocab_size}\0{self.fingerprint}"
        return f"jaxserve-{__version__}-{hashlib.sha256(known.encode()).hexdigest()[:8]}"


class ModelRouter:
    """Routes requests to models by name.

    A model has the number of its engine; number 0 serves requests that name no model.
    num_expected: number of models once all have loaded.
    """

    def __init__(self, models: Iterable[ServedModel] = (), *, num_expected: int = 1) -> None:
        self._num_expected = num_expected
        self._by_number: dict[int, ServedModel] = {}
        self._by_name: dict[str, ServedModel] = {}
        for number, model in enumerate(models):
            self.add(number, model)

    def add(self, number: int, model: ServedModel) -> None:
        """Add a model, replacing the one with its number."""
        self._by_number[number] = model
        self._by_name = {name: each for each in self._in_order() for name in each.names}

    @property
    def is_loading(self) -> bool:
        """Whether no model has loaded yet."""
        return not self._by_number

    @property
    def is_complete(self) -> bool:
        """Whether all expected models have loaded."""
        return len(self._by_number) >= self._num_expected

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """The loaded models, by number. Raises LoadingError until there is one."""
        if self.is_loading:
            raise LoadingError
        return self._in_order()

    def model(self, name: str | None) -> ServedModel:
        """Return the model called `name`.

        Raises LoadingError while a model that is still loading may have the name, and
        ModelNotFoundError otherwise.
        """
        model = self._by_number.get(0) if name is None else self._by_name.get(name)
        if model is not None:
            return model
        if name is None or not self.is_complete:
            raise LoadingError
        raise ModelNotFoundError(
            f"the model {name[:MAX_NAME_CHARS]!r} does not exist;"
            f" available models: {', '.join(self._by_name)}"
        )

    def _in_order(self) -> tuple[ServedModel, ...]:
        return tuple(self._by_number[number] for number in sorted(self._by_number))
