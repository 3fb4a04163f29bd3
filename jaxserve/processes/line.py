"""The control line: a socket pair between the supervisor and a child, one message per line.

A child that reads end-of-file knows that the supervisor has ended, in whatever way, and exits.
"""

import asyncio
import gc
import itertools
import logging
import os
import shutil
import signal
import socket
import sys
import threading
from asyncio.subprocess import DEVNULL, Process, create_subprocess_exec
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from jaxserve.observability.series import Family
from jaxserve.processes.messages import Beat, Message, Pulse, Series, TakeSeries
from jaxserve.processes.watch import LOOK_S, Watch

logger = logging.getLogger(__name__)

# The series of a server take about 100 KB.
MAX_LINE_BYTES = 2**24
SERIES_TIMEOUT_S = 1.0

_encoder = msgspec.json.Encoder()


class ChildLine[Incoming]:
    """A child's end of the control line.

    kinds: union of the supervisor's messages. Any other message ends the child, as does
    end-of-file. `send` is thread-safe.
    """

    def __init__(self, fd: int, kinds: Any) -> None:
        self._socket = socket.socket(fileno=fd)
        # Processes started by the child must not keep the line open.
        self._socket.set_inheritable(False)
        self._file = self._socket.makefile("rb")
        self._decoder = msgspec.json.Decoder(kinds)
        self._sending = threading.Lock()
        self._folder: Path | None = None

    def send(self, message: Message) -> None:
        """Send a message to the supervisor."""
        with self._sending:
            try:
                self._socket.sendall(_encoder.encode(message) + b"\n")
            except OSError:
                self._end()

    def receive(self) -> Incoming:
        """Wait for the next message."""
        line = self._file.readline(MAX_LINE_BYTES)
        if not line.endswith(b"\n"):
            self._end()
        message: Incoming = self._decoder.decode(line)
        return message

    def listen(self, obey: Callable[[Incoming], None], *, folder: str) -> None:
        """Start a thread that calls `obey` with each message.

        folder: the server's private folder, removed if the supervisor ends without removing it.
        """
        self._folder = Path(folder)
        threading.Thread(
            target=self._listen, args=(obey,), name="jaxserve-line", daemon=True
        ).start()

    def _listen(self, obey: Callable[[Incoming], None]) -> None:
        try:
            while True:
                obey(self.receive())
        except Exception:
            logger.exception("the control line is broken")
            self._end()

    def _end(self) -> None:
        """Exit at once. Without a supervisor, nothing else would end this process."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        # sys.exit would wait for threads, and for a device that may hang.
        os._exit(1)


def ignore_signals() -> None:
    """Ignore SIGINT and SIGTERM, so that the supervisor controls the shutdown.

    Ctrl-C signals all processes of a terminal, and a service manager may signal all processes of a
    service.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def freeze_garbage() -> None:
    """Exclude the objects that a child has loaded from garbage collection.

    A full collection over them takes a fifth of a second, and would delay a step or an answer
    (docs/performance.md).
    """
    gc.collect()
    gc.freeze()


@dataclass(frozen=True, slots=True)
class Silence:
    """A child has become unresponsive, or responds again."""

    is_silent: bool


class Child:
    """A child process, and the supervisor's end of its control line."""

    def __init__(
        self,
        name: str,
        process: Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.name = name
        self.process = process
        self.last_series: tuple[Family, ...] = ()
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[None]] = {}

    @classmethod
    async def start(cls, name: str, module: str, *, pass_fds: Sequence[int] = ()) -> "Child":
        """Start `python -m module FD`, where FD is the child's end of the line."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                str(theirs.fileno()),
                stdin=DEVNULL,
                pass_fds=(theirs.fileno(), *pass_fds),
            )
        ours.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE_BYTES)
        return cls(name, process, reader, writer)

    def tell(self, message: Message) -> None:
        """Send a message. Does nothing once the child has ended."""
        if not self._writer.is_closing():
            self._writer.write(_encoder.encode(message) + b"\n")

    async def messages(self, kinds: Any, watch: Watch) -> AsyncIterator[Any]:
        """Yield the child's messages until it ends or sends a malformed one.

        Beats, pulses and series are handled here. Yields a `Silence` when the child becomes
        unresponsive or responds again. Raises TimeoutError when it hangs.
        """
        decoder = msgspec.json.Decoder(kinds)
        was_silent = False
        while not watch.is_hung():
            if watch.is_silent != was_silent:
                was_silent = watch.is_silent
                yield Silence(was_silent)
            try:
                # After a timeout, a partial line stays in the reader.
                line = await asyncio.wait_for(self._reader.readline(), LOOK_S)
            except TimeoutError:
                continue
            except (ConnectionError, ValueError):
                return
            if not line.endswith(b"\n"):
                return
            try:
                message = decoder.decode(line)
            except msgspec.DecodeError:
                logger.exception("malformed message from %s", self.name)
                return
            match message:
                case Beat():
                    watch.beat()
                case Pulse():
                    watch.pulse(is_compiling=message.is_compiling)
                case Series():
                    self.last_series = message.families
                    asked = self._asked.pop(message.number, None)
                    if asked is not None and not asked.done():
                        asked.set_result(None)
                case _:
                    yield message
        raise TimeoutError(f"{self.name} shows no sign of life")

    async def series(self) -> tuple[Family, ...]:
        """Return the child's series; the previous ones if it does not answer soon."""
        number = next(self._numbers)
        self._asked[number] = asyncio.get_running_loop().create_future()
        self.tell(TakeSeries(number))
        await asyncio.wait([self._asked[number]], timeout=SERIES_TIMEOUT_S)
        self._asked.pop(number, None)
        return self.last_series

    @property
    def was_killed(self) -> bool:
        """Whether the child was ended by SIGKILL, as by an operator or the out-of-memory killer."""
        return self.process.returncode == -signal.SIGKILL

    async def ended(self) -> str:
        """Wait until the child ends; return a description of how it ended."""
        status = await self.process.wait()
        self._writer.close()
        if status < 0:
            return f"the process was killed by {signal.Signals(-status).name}"
        return f"the process ended with status {status}"

    def kill(self) -> None:
        """Kill the child if it is running."""
        if self.process.returncode is None:
            # process.kill() would lose the exit status for a concurrent wait().
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
