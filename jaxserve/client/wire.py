"""Encoding of commands and replies, and the engine's socket.

Every client has a DEALER socket whose identity is its number; the engine has one ROUTER socket. A
message is a frame of MessagePack with a type from `loop.py` or `tokens.py`; the frame of an `Add`
is followed by one with the prompt. Nothing is unpickled.
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

# Maximum number of unread replies of a client; further ones are merged.
MAX_UNREAD = 64
# Maximum number of commands received between two steps.
MAX_COMMANDS = 64
# A prompt of a million tokens is 4 MB.
MAX_MESSAGE_BYTES = 2**28
# How often to retry replies to a client whose queue is full.
RETRY_S = 0.01

_encoder = msgspec.msgpack.Encoder()
_commands = msgspec.msgpack.Decoder(Command)
_replies = msgspec.msgpack.Decoder(Reply)


class MalformedError(ValueError):
    """The frames are not a valid command."""


def encode_command(command: Command) -> list[bytes]:
    """Return the frames of a command: the command, and for `Add` the prompt as int32.

    MessagePack would take ten times longer to decode a long prompt.
    """
    if not isinstance(command, Add):
        return [_encoder.encode(command)]
    prompt = array("i", command.request.prompt_ids).tobytes()
    request = replace(command.request, prompt_ids=())
    return [_encoder.encode(Add(request, command.first_key)), prompt]


def decode_command(frames: list[bytes]) -> Command:
    """Return the command in `frames`. Raises MalformedError if they are not a valid command."""
    command, *rest = frames
    try:
        decoded: Command = _commands.decode(command)
        if len(rest) != isinstance(decoded, Add):
            raise MalformedError(f"unexpected number of frames after the command: {len(rest)}")
        if not isinstance(decoded, Add):
            return decoded
        prompt = array("i")
        prompt.frombytes(rest[0])
    except ValueError as error:  # msgspec's errors are ValueErrors
        raise MalformedError(str(error)) from error
    return Add(replace(decoded.request, prompt_ids=tuple(prompt)), decoded.first_key)


def encode_reply(reply: Reply) -> bytes:
    """Return the frame of a reply."""
    return _encoder.encode(reply)


def decode_reply(frame: bytes) -> Reply:
    """Return the reply in a frame. Raises msgspec.DecodeError if it is not a valid reply."""
    decoded: Reply = _replies.decode(frame)
    return decoded


class SocketPort:
    """Port for clients in other processes. A context manager for the engine's thread.

    beat: called in each iteration of the engine's loop; returns False to end it. gone: returns the
    clients that have ended since the last call.

    A client that does not read blocks no one else, and costs no more memory than its answers:
    replies are merged until its queue has room.
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
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # report full queues instead of dropping
        self._socket.setsockopt(zmq.SNDHWM, MAX_UNREAD)
        # API processes limit their own requests: max_concurrent_requests.
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
            # Poll first, because handling zmq.Again would cost five times as much in each step.
            if not int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                return
            identity, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            try:
                yield int(identity), decode_command(frames)
            except ValueError as error:  # also if the identity is not a number
                # Not reported to the sender, which cannot be one of our clients.
                logger.error("dropped a malformed message: %s", error)

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
        """Send a reply; return False if the queue is full. Drop replies to clients that ended."""
        try:
            self._socket.send_multipart([b"%d" % client, encode_reply(reply)], zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
        return True
