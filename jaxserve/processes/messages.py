"""What the supervisor and its children say to each other: a line of JSON each."""

from msgspec import Raw, Struct

from jaxserve.api.pooling import PoolingModel
from jaxserve.config.engine import EngineOptions
from jaxserve.config.server import ServerConfig
from jaxserve.frontend.generation_defaults import GenerationDefaults
from jaxserve.observability.series import Family
from jaxserve.server.batches.trouble import BatchTrouble


class Message(Struct, frozen=True, tag=True):
    """Base of all."""


# To any child.


class TakeSeries(Message, frozen=True):
    """Answer with a `Series` of the same number."""

    number: int


# To the engine.


class ServeEngine(Message, frozen=True):
    """Load a model and serve clients at `address`. The first message to an engine.

    number: of the engine among those of its server. name: of its process in the log.
    """

    number: int
    name: str
    options: EngineOptions
    address: str
    folder: str
    log_level: str


class ClientGone(Message, frozen=True):
    """A client has ended, and wants nothing any more."""

    client: int


class Stop(Message, frozen=True):
    """End; there are no clients left."""


# To an API process.


class ServeHttp(Message, frozen=True):
    """Answer at the listening socket `fd`. The first message to an API process.

    runs_batches: whether this is the one process that does. waits: whether to accept connections
    only once it is ready, since other processes accept them meanwhile. num_engines: of the server.
    """

    config: ServerConfig
    fd: int
    folder: str
    log_level: str
    name: str
    runs_batches: bool
    waits: bool
    num_engines: int


class EngineLoads(Message, frozen=True):
    """An engine loads a model, `hello` tells which: a `Hello`."""

    engine: int
    hello: Raw


class EngineUp(Message, frozen=True):
    """An engine serves at `address`, where this process is to call itself `client`."""

    engine: int
    hello: Raw
    address: str
    client: int


class EngineSilent(Message, frozen=True):
    """The engine does not answer now, or does again: it may have been stopped, or compile."""

    engine: int
    is_silent: bool


class EngineDown(Message, frozen=True):
    """There is no engine until the next `EngineUp`."""

    engine: int
    reason: str


class Unready(Message, frozen=True):
    """Say that the server is not ready, but go on answering: it stops soon."""


class Listen(Message, frozen=True):
    """Accept connections, ready or not: no other process does."""


class Drain(Message, frozen=True):
    """Take nothing new, finish what there is, and end."""


class AllSeries(Message, frozen=True):
    """The answer to `Scrape`: the series of all processes in one."""

    number: int
    families: tuple[Family, ...]


# From the API process that runs batches, and to all of them.


class Batches(Message, frozen=True):
    """What delays batches, None when they go on."""

    trouble: BatchTrouble | None


# From any child.


class Series(Message, frozen=True):
    """The answer to `TakeSeries`."""

    number: int
    families: tuple[Family, ...]


class Beat(Message, frozen=True):
    """The child's loop is alive."""


class Pulse(Message, frozen=True):
    """The child's process runs, whatever its loop does. is_compiling: its loop waits for that."""

    is_compiling: bool


class Ready(Message, frozen=True):
    """An engine serves; an API process has found it, and welcomes requests."""


class Failed(Message, frozen=True):
    """The child ends."""

    reason: str


# From the engine.


class Planned(Message, frozen=True):
    """What the engine will serve, under which names; it loads now."""

    names: tuple[str, ...]
    hello: Raw


# From an API process.


class Scrape(Message, frozen=True):
    """Answer with `AllSeries` of the same number."""

    number: int


class Hello(Struct, frozen=True, kw_only=True):
    """What an API process must know of a model; see `ServedModel`.

    created: when it was loaded, in UNIX time. tokenizer: its folder. kernels: by op, the backend
    that computes it, and what others lack.
    """

    names: tuple[str, ...]
    created: int
    tokenizer: str
    chat_template: str | None
    max_model_len: int
    vocab_size: int
    max_logprobs: int
    logprobs_mode: str
    defaults: GenerationDefaults
    has_priorities: bool
    max_queued_requests: int
    fingerprint: str
    kernels: dict[str, tuple[str, dict[str, str]]]
    pooling: PoolingModel | None = None


type ToEngine = ServeEngine | TakeSeries | ClientGone | Stop
type ToApi = (
    ServeHttp
    | TakeSeries
    | EngineLoads
    | EngineUp
    | EngineSilent
    | EngineDown
    | Unready
    | Listen
    | Drain
    | AllSeries
    | Batches
)
type FromEngine = Planned | Ready | Beat | Pulse | Failed | Series
type FromApi = Ready | Beat | Failed | Series | Scrape | Batches
