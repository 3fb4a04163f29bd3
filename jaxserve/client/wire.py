"""Commands and replies as bytes, and the engine's end of the sockets that carry them.

Every client has a DEALER socket whose identity is its number; the engine has one ROUTER socket. A
message is one frame of MessagePack, of types that `loop.py` and `tokens.py` define; nothing else
is understood, and nothing is ever unpickled.
"""

import logging
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Self

import msgspec
import zmq

from jaxserve.api.tokens import TokenBatch
from jaxserve.engine.loop import Add, Command, Leave, Reply

logger = logging.getLogger(__name__)

# Replies that a client may leave unread; what comes after them is merged into one.
MAX_UNREAD = 64
# Commands taken before the engine goes on with its steps.
MAX_COMMANDS = 64
# A prompt of a million tokens is 4 MB.
MAX_MESSAGE_BYTES = 2**28
# How soon what a client had no room for is tried again when nothing else happens.
RETRY_S = 0.01

_encoder = msgspec.msgpack.Encoder()
_commands = msgspec.msgpack.Decoder(Command)
_replies = msgspec.msgpack.Decoder(Reply)


class MalformedError(ValueError):
    """Frames that are no command."""


def encode_command(command: Command) -> list[bytes]:
    """Return a command as frames: itself and, for `Add`, the prompt as int32.

    A long prompt would take the engine ten times longer to read as MessagePack.
    """
    if not isinstance(command, Add):
        return [_encoder.encode(command)]
    prompt = array("i", command.request.prompt_ids).tobytes()
    request = replace(command.request, prompt_ids=())
    return [_encoder.encode(Add(request, command.first_key)), prompt]


def decode_command(frames: list[bytes]) -> Command:
    """Return the command of some frames; raises MalformedError for what is none."""
    command, *rest = frames
    try:
        decoded: Command = _commands.decode(command)
        if len(rest) != isinstance(decoded, Add):
            raise MalformedError(f"there are {len(rest)} frames after a command")
        if not isinstance(decoded, Add):
            return decoded
        prompt = array("i")
        prompt.frombytes(rest[0])
    except ValueError as error:  # msgspec's errors are such
        raise MalformedError(str(error)) from error
    return Add(replace(decoded.request, prompt_ids=tuple(prompt)), decoded.first_key)


def encode_reply(reply: Reply) -> bytes:
    """Return a reply as a frame."""
    return _encoder.encode(reply)


def decode_reply(frame: bytes) -> Reply:
    """Return the reply of a frame; raises msgspec.DecodeError for what is none."""
    decoded: Reply = _replies.decode(frame)
    return decoded


class SocketPort:
    """A port whose clients are in other processes; for the engine's thread, as a context.

    beat: called each time the engine's loop comes by; ends it by returning False. gone: returns
    the clients that have ended since it was asked last.

    A client that does not read makes nobody wait, and costs no more memory than its answers: what
    it has no room for is merged until there is.
    """

    def __init__(
        self, address: str, *, beat: Callable[[], bool], gone: Callable[[], Iterable[int]]
    ) -> None:
        self.is_open = True
        self._beat = beat
        self._gone = gone
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # else what has no room is dropped
        self._socket.setsockopt(zmq.SNDHWM, MAX_UNREAD)
        # API processes bound what they ask for themselves: max_concurrent_requests.
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._socket.bind(address)
        self._late: dict[int, deque[Reply]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._context.term()

    def receive(self, timeout_s: float) -> Iterator[tuple[int, Command]]:
        """See Port."""
        self.is_open = self._beat()
        for client in self._gone():
            self._late.pop(client, None)
            yield client, Leave()
        for client in list(self._late):
            self._send_late(client)
        if timeout_s:
            self._socket.poll(int(1000 * (RETRY_S if self._late else timeout_s)))
        for _ in range(MAX_COMMANDS):
            # Asked first: an exception would cost five times as much, at each step.
            if not int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                return
            identity, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            try:
                yield int(identity), decode_command(frames)
            except ValueError as error:  # also of an identity that is no number
                # Not said to whoever sent it, which cannot be a client of ours.
                logger.error("a message that is no command was dropped: %s", error)

    def send(self, client: int, reply: Reply) -> None:
        """See Port."""
        late = self._late.get(client)
        if late is None:
            if not self._try(client, reply):
                self._late[client] = deque([reply])
        elif isinstance(reply, TokenBatch) and isinstance(late[-1], TokenBatch):
            late[-1].extend(reply)
        else:
            late.append(reply)

    def _send_late(self, client: int) -> None:
        late = self._late[client]
        while late:
            if not self._try(client, late[0]):
                return
            late.popleft()
        del self._late[client]

    def _try(self, client: int, reply: Reply) -> bool:
        """Send a reply if there is room; what is for a client that is gone is dropped."""
        try:
            self._socket.send_multipart([b"%d" % client, encode_reply(reply)], zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
        return True
