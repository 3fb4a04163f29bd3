"""What the endpoints share: the models, the metrics, and how much is going on."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from starlette.requests import Request

from jaxserve import __version__
from jaxserve.api.engine_config import DEFAULT_MAX_LOGPROBS, DEFAULT_MAX_QUEUED_REQUESTS
from jaxserve.api.pooling import PoolingModel
from jaxserve.chat.parser import AnswerFormat
from jaxserve.chat.template import ChatTemplate
from jaxserve.client import EngineClient
from jaxserve.config.server import ServerConfig
from jaxserve.errors import (
    CheckpointError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
)
from jaxserve.frontend.generation_defaults import GenerationDefaults
from jaxserve.grammar import GrammarChecker
from jaxserve.observability.metrics import Metrics
from jaxserve.observability.series import Family
from jaxserve.server.batches.store import BatchStore
from jaxserve.server.batches.trouble import BatchTrouble
from jaxserve.server.errors import LoadingError, ShuttingDownError
from jaxserve.server.http.body_budget import BodyBudget
from jaxserve.server.http.lanes import Lanes
from jaxserve.server.responses.store import ResponseStore
from jaxserve.tokenization.tokenizer import Tokenizer

# Requests of one answer that the engine has at once: its queue is for others, too.
MAX_AT_ONCE = 256
MAX_NAME_CHARS = 64
# Of each body, and of each upload, that are not counted: what is kept of them before the endpoint
# reads it, and what a form keeps in memory.
FREE_BODY_BYTES = 2**16
FREE_UPLOAD_BYTES = 2**20
# Of all files that are being uploaded, in temporary files: five of the longest.
MAX_UPLOADING_BYTES = 1000 * 2**20

type Scrape = Callable[[], Awaitable[Sequence[Family]]]


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


def server_state(http: Request) -> "ServerState":
    """Return what the endpoints of this request's server share."""
    state: ServerState = http.app.state.server
    return state


class ServerState:
    """One server's models, metrics and load.

    folder: for what the server keeps, shared by its processes. scrape: returns the series to show,
    which may be more than the server's own `metrics`. batch_trouble: what delays batches, in
    whichever process runs them.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        *,
        metrics: Metrics,
        config: ServerConfig,
        folder: Path,
        scrape: Scrape | None = None,
    ) -> None:
        self.metrics = metrics
        self.responses = ResponseStore(
            folder,
            max_responses=config.max_stored_responses,
            max_bytes=config.max_stored_response_bytes,
        )
        self.batches = BatchStore(
            folder / "batches" if config.batch_dir is None else Path(config.batch_dir),
            max_bytes=config.max_batch_bytes,
            max_batches=config.max_batches,
        )
        self.body_budget = BodyBudget(config.max_buffered_body_bytes, free_bytes=FREE_BODY_BYTES)
        self.upload_budget = BodyBudget(MAX_UPLOADING_BYTES, free_bytes=FREE_UPLOAD_BYTES)
        self.files = self.batches.files
        self.batch_trouble: BatchTrouble | None = None
        # Responses that are being made while nobody waits for them.
        self.background: set[asyncio.Task[None]] = set()
        self.scrape = scrape or self._own_series
        self.config = config
        # In this order: not ready, but taking requests; taking none.
        self.is_stopping = False
        self.is_draining = False
        self.lanes = Lanes()
        self._models: tuple[ServedModel, ...] = ()
        self._by_name: dict[str, ServedModel] = {}
        self._num_active = 0
        self.welcome(models)

    def welcome(self, models: Sequence[ServedModel]) -> None:
        """Serve these models from now on; none, while they load."""
        self._models = tuple(models)
        self._by_name = {name: model for model in models for name in model.names}

    @property
    def is_loading(self) -> bool:
        """Whether there is nothing to serve yet."""
        return not self._models

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """What is served; raises LoadingError until there is something."""
        if self.is_loading:
            raise LoadingError
        return self._models

    def model(self, name: str | None) -> ServedModel:
        """Return the model of a name, the first one if none is given."""
        if name is None:
            return self.models[0]
        if name not in self._by_name:
            if self.is_loading:
                raise LoadingError
            raise ModelNotFoundError(
                f"the model {name[:MAX_NAME_CHARS]!r} does not exist here;"
                f" there is {', '.join(self._by_name)}"
            )
        return self._by_name[name]

    def note_batches(self, trouble: BatchTrouble | None) -> None:
        """Remember what delays batches, None when they go on."""
        self.batch_trouble = trouble

    @property
    def num_active(self) -> int:
        """Answers that are being made."""
        return self._num_active

    @contextmanager
    def admitted(self, model: ServedModel) -> Iterator[None]:
        """Count an answer while it is made; raise OverloadedError when there are too many.

        Also counts what the engine refuses inside.
        """
        try:
            if self.is_draining:
                raise ShuttingDownError
            if self._num_active >= self.config.max_concurrent_requests:
                raise OverloadedError(
                    f"the server is making {self._num_active} answers, as many as it may",
                    retry_after_s=1.0,
                )
        except OverloadedError as error:
            reason = "shutting_down" if self.is_draining else "concurrency"
            self.metrics.observe_rejection(reason, model_name=model.name)
            raise error
        self._num_active += 1
        try:
            yield
        finally:
            self._num_active -= 1

    async def _own_series(self) -> Sequence[Family]:
        return self.metrics.snapshot()
