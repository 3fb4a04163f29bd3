"""Messages between the supervisor and its children, each a line of JSON."""

from msgspec import Raw, Struct

from jaxserve.api.pooling import PoolingModel
from jaxserve.config.engine import EngineOptions
from jaxserve.config.server import ServerConfig
from jaxserve.frontend.generation_defaults import GenerationDefaults
from jaxserve.observability.series import Family
from jaxserve.server.batches.trouble import BatchTrouble


class Message(Struct, frozen=True, tag=True):
    """Base class of messages."""


# To any child.


class TakeSeries(Message, frozen=True):
    """Request a `Series` message with the same number."""

    number: int


# To the engine.


class ServeEngine(Message, frozen=True):
    """Load a model, and serve clients at `address`. The first message to an engine.

    number: number of the engine in its server. name: name of its process in the log.
    """

    number: int
    name: str
    options: EngineOptions
    address: str
    folder: str
    log_level: str


class ClientGone(Message, frozen=True):
    """A client has ended; drop its requests."""

    client: int


class Stop(Message, frozen=True):
    """Exit; there are no clients left."""


# To an API process.


class ServeHttp(Message, frozen=True):
    """Serve HTTP at the listening socket `fd`. The first message to an API process.

    runs_batches: whether this process runs batches, as exactly one does. waits: whether to accept
    connections only once ready, because other processes are accepting them. num_engines: number of
    engines of the server.
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
    """An engine is loading a model. hello: an encoded `Hello`."""

    engine: int
    hello: Raw


class EngineUp(Message, frozen=True):
    """An engine serves at `address`. client: number of this process as its client."""

    engine: int
    hello: Raw
    address: str
    client: int


class EngineSilent(Message, frozen=True):
    """The engine has become unresponsive, as when stopped or compiling, or responds again."""

    engine: int
    is_silent: bool


class EngineDown(Message, frozen=True):
    """The engine has ended. There is none until the next `EngineUp`."""

    engine: int
    reason: str


class Unready(Message, frozen=True):
    """Report not ready, but continue to serve: the server will stop soon."""


class Listen(Message, frozen=True):
    """Accept connections even if not ready, because no other process does."""


class Drain(Message, frozen=True):
    """Refuse new requests, finish running ones, and exit."""


class AllSeries(Message, frozen=True):
    """Answer to `Scrape`: the merged series of all processes."""

    number: int
    families: tuple[Family, ...]


# From the API process that runs batches, and to all of them.


class Batches(Message, frozen=True):
    """What delays batches; None when they proceed."""

    trouble: BatchTrouble | None


# From any child.


class Series(Message, frozen=True):
    """Answer to `TakeSeries`."""

    number: int
    families: tuple[Family, ...]


class Beat(Message, frozen=True):
    """The child's loop is alive."""


class Pulse(Message, frozen=True):
    """The child's process is running. is_compiling: whether its loop waits for a compilation."""

    is_compiling: bool


class Ready(Message, frozen=True):
    """The child is ready to serve requests."""


class Failed(Message, frozen=True):
    """The child is about to exit because of an error."""

    reason: str


# From the engine.


class Planned(Message, frozen=True):
    """The engine is loading the model that `hello` describes, to serve it under `names`."""

    names: tuple[str, ...]
    hello: Raw


# From an API process.


class Scrape(Message, frozen=True):
    """Request an `AllSeries` message with the same number."""

    number: int


class Hello(Struct, frozen=True, kw_only=True):
    """Description of a model for API processes; see `ServedModel`.

    created: UNIX time when it was loaded. tokenizer: folder of the tokenizer. kernels: by op, the
    backend in use, and why each other backend was refused.
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
