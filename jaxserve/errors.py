"""Every error jaxserve raises on purpose.

    JaxserveError
    ├── InvalidRequestError          the caller's request is wrong            400
    │   ├── ContextLengthError       prompt (+ output) does not fit           400
    │   └── ModelNotFoundError       no such model here                       404
    ├── OverloadedError              the queue is full, try again later       503
    ├── EngineDeadError              the engine stopped; nothing can run      503
    ├── StorageError                 the disk is full, or cannot be used      507, 503
    ├── RestartLimitError            processes of the server died too often
    ├── ConfigError                  the operator's settings cannot work
    │   └── MemoryPlanError          weights, cache and workspace do not fit
    ├── KernelError                  a kernel computes wrong numbers on this machine
    └── CheckpointError              a model folder cannot be used as it is

Messages name the parameter, the value found and the limit. They are written here, never copied
from an exception of another library, so that they carry no addresses, paths or secrets of the host.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from math import inf

# What a client reads of an error that is none of its own.
INTERNAL_ERROR = "an internal error has ended this request"


class JaxserveError(Exception):
    """Base of all errors raised on purpose.

    exit_status: of a command that ends with the error.
    """

    exit_status = 1


class InvalidRequestError(JaxserveError, ValueError):
    """A request that cannot be served as it stands.

    `param` is the request field at fault (None when it is the whole body), `code` the short
    machine-readable reason of OpenAI's error body, `status` the HTTP status it maps to.
    """

    status = 400

    def __init__(self, message: str, *, param: str | None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class ContextLengthError(InvalidRequestError):
    """The prompt, alone or with the tokens asked for, is longer than the model's context."""

    def __init__(self, message: str, *, param: str | None) -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class ModelNotFoundError(InvalidRequestError):
    """The request names a model this server does not have."""

    status = 404

    def __init__(self, message: str, *, param: str | None = "model") -> None:
        super().__init__(message, param=param, code="model_not_found")


class OverloadedError(JaxserveError):
    """The queue is full. `retry_after_s` is a hint in seconds for the client's next try."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class EngineDeadError(JaxserveError):
    """The engine loop has stopped: what was in flight has failed and nothing new can start."""


class StorageFault(StrEnum):
    """Why what the server keeps cannot be read or written."""

    FULL = "full"
    LOCKED = "locked"
    CORRUPT = "corrupt"
    READ_ONLY = "read_only"
    UNAVAILABLE = "unavailable"


class StorageError(JaxserveError):
    """Files or databases of the server cannot be read or written.

    `message` is for clients; the error's text is for the operator, and names the file.
    """

    def __init__(self, fault: StorageFault, message: str, *, detail: str | None = None) -> None:
        super().__init__(detail or message)
        self.fault = fault
        self.message = message


class RestartLimitError(JaxserveError):
    """Processes of a server died more often than `--max-restarts` allows.

    The exit status is one of its own: to start the server again may help, which it cannot after an
    error in the settings.
    """

    exit_status = 3


class ConfigError(JaxserveError, ValueError):
    """Settings that cannot work, alone or together."""


class MemoryPlanError(ConfigError):
    """The device cannot hold weights, workspace and a useful KV cache; says what to change.

    needed: the least memory that would do, as a multiple of what is usable; infinite if unknown.
    """

    def __init__(self, message: str, *, needed: float = inf) -> None:
        super().__init__(message)
        self.needed = needed


class KernelError(JaxserveError):
    """A device's kernels compute wrong numbers here; says which, and what to take instead."""


class CheckpointError(JaxserveError):
    """A checkpoint is missing, incomplete, of an unknown kind, or does not match its config."""


@contextmanager
def naming(position: int, count: int, *, what: str = "prompt") -> Iterator[None]:
    """Say in the error of one of several prompts or pairs which of them it is of."""
    try:
        yield
    except InvalidRequestError as error:
        if count > 1:
            error.add_note(f"in {what} {position} of {count}, counted from 0")
        raise
