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

# Message for clients about errors of the server.
INTERNAL_ERROR = "an internal error has ended this request"


class JaxserveError(Exception):
    """Base class of all errors raised on purpose.

    exit_status: exit status of a command that fails with the error.
    """

    exit_status = 1


class InvalidRequestError(JaxserveError, ValueError):
    """An invalid request.

    `param` is the request field at fault (None for the whole body), `code` the short
    machine-readable reason of OpenAI's error body, and `status` the HTTP status.
    """

    status = 400

    def __init__(self, message: str, *, param: str | None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class ContextLengthError(InvalidRequestError):
    """The prompt, alone or with the requested tokens, is longer than the model's context."""

    def __init__(self, message: str, *, param: str | None) -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class ModelNotFoundError(InvalidRequestError):
    """The server has no model with the requested name."""

    status = 404

    def __init__(self, message: str, *, param: str | None = "model") -> None:
        super().__init__(message, param=param, code="model_not_found")


class OverloadedError(JaxserveError):
    """The queue is full. retry_after_s: seconds after which a client may try again."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class EngineDeadError(JaxserveError):
    """The engine loop has stopped. Requests in flight have failed, and new ones are refused."""


class StorageFault(StrEnum):
    """Reason for which stored data cannot be read or written."""

    FULL = "full"
    LOCKED = "locked"
    CORRUPT = "corrupt"
    READ_ONLY = "read_only"
    UNAVAILABLE = "unavailable"


class StorageError(JaxserveError):
    """The server's files or databases cannot be read or written.

    `message` is for clients. The error's text is for the operator and names the file.
    """

    def __init__(self, fault: StorageFault, message: str, *, detail: str | None = None) -> None:
        super().__init__(detail or message)
        self.fault = fault
        self.message = message


class RestartLimitError(JaxserveError):
    """The server's processes died more often than `--max-restarts` allows.

    It has its own exit status, because restarting the server may help, unlike after a configuration
    error.
    """

    exit_status = 3


class ConfigError(JaxserveError, ValueError):
    """Invalid settings, alone or in combination."""


class MemoryPlanError(ConfigError):
    """Weights, workspace and a useful KV cache do not fit into the device; says what to change.

    needed: least sufficient memory, as a multiple of the usable memory; infinite if unknown.
    """

    def __init__(self, message: str, *, needed: float = inf) -> None:
        super().__init__(message)
        self.needed = needed


class KernelError(JaxserveError):
    """Kernels compute wrong numbers on this device; says which, and what to use instead."""


class CheckpointError(JaxserveError):
    """A checkpoint is missing, incomplete, unsupported, or does not match its configuration."""


@contextmanager
def naming(position: int, count: int, *, what: str = "prompt") -> Iterator[None]:
    """Add the index of the prompt or pair to an error."""
    try:
        yield
    except InvalidRequestError as error:
        if count > 1:
            error.add_note(f"in {what} {position} of {count}, counted from 0")
        raise
