"""The engine's loop: receive commands, run steps, send batches of tokens to clients."""

import logging
from collections.abc import Iterable
from typing import Protocol

from msgspec import Struct

from jaxserve.api.request import FinishReason, Request
from jaxserve.api.tokens import TokenBatch
from jaxserve.engine.engine import Engine
from jaxserve.errors import INTERNAL_ERROR, InvalidRequestError, JaxserveError, OverloadedError

logger = logging.getLogger(__name__)

# Longest time an idle loop waits for commands: liveness checks expect a call of Port.receive.
HEARTBEAT_S = 0.5


class Add(Struct, frozen=True, array_like=True, tag=1):
    """Add a request; see Engine.add."""

    request: Request
    first_key: int


class Abort(Struct, frozen=True, array_like=True, tag=2):
    """Abort a request; see Engine.abort."""

    request_id: str


class Finish(Struct, frozen=True, array_like=True, tag=3):
    """Finish one choice of a request; see Engine.finish."""

    request_id: str
    index: int
    num_tokens: int
    reason: FinishReason


class Leave(Struct, frozen=True, array_like=True, tag=4):
    """Abort all requests of the client; see Engine.leave."""


class Refusal(Struct, frozen=True, array_like=True, tag=2):
    """Reply to a request that was not added: the message and fields of the error.

    retry_after_s is set for an OverloadedError, is_invalid for an InvalidRequestError.
    """

    request_id: str
    message: str
    is_invalid: bool = False
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None

    @staticmethod
    def of(request_id: str, error: JaxserveError) -> "Refusal":
        """Return the refusal that describes an error."""
        match error:
            case InvalidRequestError():
                return Refusal(
                    request_id, error.message, is_invalid=True, param=error.param, code=error.code
                )
            case OverloadedError():
                return Refusal(request_id, error.message, retry_after_s=error.retry_after_s)
        return Refusal(request_id, str(error))

    def error(self) -> JaxserveError:
        """Return the error to raise to the caller."""
        if self.is_invalid:
            return InvalidRequestError(self.message, param=self.param, code=self.code)
        if self.retry_after_s is not None:
            return OverloadedError(self.message, retry_after_s=self.retry_after_s)
        return JaxserveError(self.message)


type Command = Add | Abort | Finish | Leave
# The encoded messages are distinguished by their tags; TokenBatch has tag 1.
type Reply = TokenBatch | Refusal


class Port(Protocol):
    """Transport of commands to the engine's loop and of replies to clients."""

    @property
    def is_open(self) -> bool:
        """Whether the loop should continue."""
        ...

    def receive(self, timeout_s: float) -> Iterable[tuple[int, Command]]:
        """Return the commands received so far, each with its client.

        Waits up to timeout_s for the first one. The loop calls this at least every HEARTBEAT_S
        plus the duration of a step, so the port can also use it as a liveness signal.
        """
        ...

    def send(self, client: int, reply: Reply) -> None:
        """Send a reply without blocking on the client."""
        ...


def run_engine(engine: Engine, port: Port) -> None:
    """Serve the clients of a port until it closes; raises what `Engine.step` raises."""
    while port.is_open:
        for client, command in port.receive(0.0 if engine.has_work else HEARTBEAT_S):
            _obey(engine, port, client, command)
        if engine.has_work:
            for client, batch in engine.step().items():
                port.send(client, batch)


def _obey(engine: Engine, port: Port, client: int, command: Command) -> None:
    match command:
        case Add():
            _add(engine, port, client, command)
        case Abort():
            engine.abort(command.request_id)
        case Finish():
            engine.finish(
                command.request_id,
                command.index,
                num_tokens=command.num_tokens,
                reason=command.reason,
            )
        case Leave():
            engine.leave(client)


def _add(engine: Engine, port: Port, client: int, command: Add) -> None:
    request = command.request
    try:
        engine.add(request, client=client, first_key=command.first_key)
    except JaxserveError as error:
        port.send(client, Refusal.of(request.id, error))
    except Exception:
        # An unexpected error in one request must not stop the others.
        logger.exception("request %r could not be added", request.id)
        port.send(client, Refusal(request.id, INTERNAL_ERROR))
