"""The control line: a socket pair between the supervisor and a child, with a message a line.

Its end is the end of whoever held the other one. So a child that reads "end of file" knows that
the supervisor is gone, however that came about, and goes too.
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

# Series of a server are some 100 KB.
MAX_LINE_BYTES = 2**24
SERIES_TIMEOUT_S = 1.0

_encoder = msgspec.json.Encoder()


class ChildLine[Incoming]:
    """A child's end of its line.

    kinds: the type of what the supervisor says; anything else ends the child, as the supervisor's
    end does. `send` may be called from any thread.
    """

    def __init__(self, fd: int, kinds: Any) -> None:
        self._socket = socket.socket(fileno=fd)
        # Of what the child may start itself, nobody shall keep the line open.
        self._socket.set_inheritable(False)
        self._file = self._socket.makefile("rb")
        self._decoder = msgspec.json.Decoder(kinds)
        self._sending = threading.Lock()
        self._folder: Path | None = None

    def send(self, message: Message) -> None:
        """Say something to the supervisor."""
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
        """From now on, call `obey` with each message, on a thread of its own.

        folder: the server's private folder, which the last of its processes must remove.
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
        """End at once: without a supervisor nobody would ever end this process."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        # Not sys.exit, which would wait for threads, and for a device that may hang.
        os._exit(1)


def ignore_signals() -> None:
    """Leave it to the supervisor to end this process.

    Ctrl-C reaches all processes of a terminal, and a service manager may signal all of a service;
    what is to happen then, and in which order, the supervisor says.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def freeze_garbage() -> None:
    """Let the garbage collector leave alone what a child has loaded.

    To go through it all in search of garbage takes it a fifth of a second, in the midst of a step
    or an answer (docs/performance.md).
    """
    gc.collect()
    gc.freeze()


@dataclass(frozen=True, slots=True)
class Silence:
    """A child does not answer now, or does again, as its watch has noticed."""

    is_silent: bool


class Child:
    """The supervisor's end: a process, and what it says."""

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
        """Start `python -m module FD`, FD being its end of the line."""
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
        """Say something; no-op once the child is gone."""
        if not self._writer.is_closing():
            self._writer.write(_encoder.encode(message) + b"\n")

    async def messages(self, kinds: Any, watch: Watch) -> AsyncIterator[Any]:
        """Yield what the child says, but for signs of life and series, until it ends or errs.

        Yields a `Silence` when it stops answering and when it answers again. Raises TimeoutError
        when it hangs.
        """
        decoder = msgspec.json.Decoder(kinds)
        was_silent = False
        while not watch.is_hung():
            if watch.is_silent != was_silent:
                was_silent = watch.is_silent
                yield Silence(was_silent)
            try:
                # What has been read of a line when time is up stays in the reader.
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
                logger.exception("%s says what nobody understands", self.name)
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
        """Ask for the child's series; those it said last, if it does not answer soon."""
        number = next(self._numbers)
        self._asked[number] = asyncio.get_running_loop().create_future()
        self.tell(TakeSeries(number))
        await asyncio.wait([self._asked[number]], timeout=SERIES_TIMEOUT_S)
        self._asked.pop(number, None)
        return self.last_series

    @property
    def was_killed(self) -> bool:
        """Whether SIGKILL ended the child, which comes from an operator or for want of memory."""
        return self.process.returncode == -signal.SIGKILL

    async def ended(self) -> str:
        """Wait for the child's end and return it in words."""
        status = await self.process.wait()
        self._writer.close()
        if status < 0:
            return f"the process was killed by {signal.Signals(-status).name}"
        return f"the process ended with status {status}"

    def kill(self) -> None:
        """End the child at once, if it has not ended."""
        if self.process.returncode is None:
            # Not process.kill(), which takes the exit status away from who waits for it.
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
