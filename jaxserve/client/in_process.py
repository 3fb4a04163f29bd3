"""An engine on a thread of the caller's process."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial

from tokenizers import Tokenizer

from jaxserve.api.request import Request, TokenEvent
from jaxserve.client import DRAIN_RETRY_S, STOP_TIMEOUT_S, EngineClient
from jaxserve.client.streams import Streams
from jaxserve.engine.engine import Engine
from jaxserve.engine.loop import Abort, Command, Leave, Reply, run_engine
from jaxserve.errors import EngineDeadError, OverloadedError
from jaxserve.observability.stats import StepStats

logger = logging.getLogger(__name__)

# A step takes milliseconds, and compiling a program that warm-up missed a minute or two. A longer
# step counts as hung.
HANG_TIMEOUT_S = 300.0
POLL_S = 0.005


class InProcessClient(EngineClient):
    """Runs an engine on a daemon thread, from construction until `shutdown` or a failure.

    Only that thread uses the engine; commands reach it through a `ThreadPort`. Each calling event
    loop is a separate client, which is woken once per step.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer | None,
        *,
        hang_timeout_s: float = HANG_TIMEOUT_S,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._hang_timeout_s = hang_timeout_s
        self._port = ThreadPort()
        self._is_draining = False
        self._thread = threading.Thread(target=self._run, name="jaxserve-engine", daemon=True)
        self._thread.start()

    def generate(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        """See EngineClient."""
        if self._port.dead_reason is not None:
            raise EngineDeadError(self._port.dead_reason)
        if self._is_draining:
            raise OverloadedError("the server is shutting down", retry_after_s=DRAIN_RETRY_S)
        return self._port.streams_here(self._tokenizer).generate(request)

    def abort(self, request_id: str) -> None:
        """See EngineClient."""
        self._port.streams_here(self._tokenizer).abort(request_id)

    @property
    def is_alive(self) -> bool:
        """See EngineClient."""
        return self._why_dead() is None

    @property
    def is_responding(self) -> bool:
        """See EngineClient."""
        return self.is_alive

    def check_health(self) -> None:
        """See EngineClient."""
        reason = self._why_dead()
        if reason is not None:
            raise EngineDeadError(reason)

    def stats(self) -> StepStats:
        """Return the current gauges, and the counts since the engine was created."""
        return self._engine.stats()

    async def shutdown(self, *, drain_timeout_s: float) -> None:
        """See EngineClient."""
        self._is_draining = True
        await asyncio.to_thread(self._stop, drain_timeout_s)

    @property
    def is_idle(self) -> bool:
        """Whether every request has ended."""
        return self._port.is_idle

    def _why_dead(self) -> str | None:
        if self._port.dead_reason is not None:
            return self._port.dead_reason
        silent_s = time.monotonic() - self._port.beat_s
        if silent_s > self._hang_timeout_s:
            return f"the engine has not finished a step for {silent_s:.0f} s"
        return None

    def _stop(self, drain_timeout_s: float) -> None:
        self._port.wait_until_idle(drain_timeout_s)
        self._port.abort_all()
        self._port.wait_until_idle(STOP_TIMEOUT_S)
        self._port.close()
        self._thread.join(STOP_TIMEOUT_S)
        if self._thread.is_alive():
            logger.error("the engine's thread did not stop within %g s", STOP_TIMEOUT_S)

    def _run(self) -> None:
        try:
            run_engine(self._engine, self._port)
            while self._engine.has_work:  # finish steps in flight, whose requests have ended
                self._engine.step()
            self._port.die("the engine was shut down")
        except Exception:
            logger.exception("the engine has failed")
            self._port.die("the engine has failed; its log says why")


class ThreadPort:
    """A port between an engine's thread and event loops on others.

    beat_s: time of the engine loop's last call. dead_reason: why the engine ended; None while it
    runs.
    """

    def __init__(self) -> None:
        self.is_open = True
        self.beat_s = time.monotonic()
        self.dead_reason: str | None = None
        # Guards the inbox and the clients; notified of commands and of `close`.
        self._changed = threading.Condition()
        self._inbox: list[tuple[int, Command]] = []
        self._clients: dict[int, tuple[asyncio.AbstractEventLoop, Streams]] = {}
        self._next_client = 0

    # On the engine's thread.

    def receive(self, timeout_s: float) -> list[tuple[int, Command]]:
        """See Port."""
        self.beat_s = time.monotonic()
        with self._changed:
            if timeout_s and not self._inbox and self.is_open:
                self._changed.wait(timeout_s)
            inbox, self._inbox = self._inbox, []
        return inbox

    def send(self, client: int, reply: Reply) -> None:
        """See Port."""
        if not self._call(client, lambda streams: streams.receive(reply)):
            self._put(client, Leave())

    def die(self, reason: str) -> None:
        """Fail every stream, and refuse further commands."""
        with self._changed:
            self.dead_reason = reason
            self._inbox.clear()
            clients = [client for client, (_, streams) in self._clients.items() if streams.is_busy]
        for client in clients:
            self._call(client, lambda streams: streams.fail(reason))

    # On the callers' threads.

    def streams_here(self, tokenizer: Tokenizer | None) -> Streams:
        """Return the streams of the running event loop."""
        here = asyncio.get_running_loop()
        with self._changed:
            for client, (loop, streams) in list(self._clients.items()):
                if loop is here:
                    return streams
                if loop.is_closed() and not streams.is_busy:
                    del self._clients[client]
            client = self._next_client
            self._next_client += 1
            streams = Streams(tokenizer, partial(self._put, client))
            self._clients[client] = here, streams
            return streams

    @property
    def is_idle(self) -> bool:
        """Whether no stream of an open event loop has a running request."""
        with self._changed:
            clients = list(self._clients.values())
        return all(loop.is_closed() or not streams.is_busy for loop, streams in clients)

    def wait_until_idle(self, timeout_s: float) -> None:
        """Wait until every request has ended, or until the timeout."""
        deadline_s = time.monotonic() + timeout_s
        while not self.is_idle and time.monotonic() < deadline_s:
            time.sleep(POLL_S)

    def abort_all(self) -> None:
        """Abort every request."""
        with self._changed:
            clients = list(self._clients.items())
        for client, (_, streams) in clients:
            for request_id in streams.request_ids:
                self._put(client, Abort(request_id))

    def close(self) -> None:
        """Stop the engine's loop."""
        with self._changed:
            self.is_open = False
            self._changed.notify_all()

    def _put(self, client: int, command: Command) -> None:
        with self._changed:
            if self.dead_reason is None:
                self._inbox.append((client, command))
                self._changed.notify_all()
                return
            reason = self.dead_reason
        self._call(client, lambda streams: streams.fail(reason))

    def _call(self, client: int, function: Callable[[Streams], None]) -> bool:
        """Call a function on a client's event loop; return False if the loop is closed."""
        with self._changed:
            loop, streams = self._clients.get(client, (None, None))
        if loop is None or streams is None:
            return False
        try:
            loop.call_soon_threadsafe(function, streams)
        except RuntimeError:  # the loop was closed while requests were running
            with self._changed:
                self._clients.pop(client, None)
            return False
        return True
