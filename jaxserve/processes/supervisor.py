"""The main process of a server, which starts and monitors an engine and API processes.

It loads neither JAX nor a tokenizer, and no request passes through it.
"""

import asyncio
import itertools
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from jaxserve.config.engine import EngineOptions
from jaxserve.config.server import ServerConfig
from jaxserve.observability.logging import get_logger
from jaxserve.processes.children import Children, log_silence
from jaxserve.processes.engine_keeper import EngineKeeper
from jaxserve.processes.line import Child, Silence
from jaxserve.processes.messages import (
    AllSeries,
    Batches,
    ClientGone,
    Drain,
    Failed,
    FromApi,
    Listen,
    Ready,
    Scrape,
    ServeHttp,
    Unready,
)
from jaxserve.processes.restarts import End, not_started
from jaxserve.processes.watch import Watch

log = get_logger(__name__)

# Time for API processes to exit after `shutdown_timeout_s`, and for an idle engine to stop.
LAST_WORDS_S = 5.0
STOP_TIMEOUT_S = 5.0
# An API process without a beat for this long is silent: all of its clients are waiting.
API_SILENT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """The modules that the children run."""

    engine: str = "jaxserve.commands.engine_process"
    api: str = "jaxserve.processes.api"


class Supervisor:
    """Runs one server.

    engines: options of each engine; the first one's model serves requests that name no model.
    listener: a bound socket, on which API processes listen. announce: called once with the names
    of all models, when the server is ready.
    """

    def __init__(
        self,
        engines: Sequence[EngineOptions],
        config: ServerConfig,
        *,
        listener: socket.socket,
        announce: Callable[[tuple[str, ...]], None],
        log_level: str = "info",
        programs: Programs | None = None,
    ) -> None:
        self._config = config
        self._listener = listener
        self._announce: Callable[[tuple[str, ...]], None] | None = announce
        self._programs = programs or Programs()
        self._children = Children(config, num_engines=len(engines), log_level=log_level)
        self._engines = tuple(
            EngineKeeper(
                number,
                options,
                config,
                self._children,
                name="engine" if len(engines) == 1 else f"engine {number}",
                module=self._programs.engine,
                taken_names=self._taken_names,
            )
            for number, options in enumerate(engines)
        )
        self._ready_apis: set[int] = set()
        self._batches = Batches(None)
        self._silent_apis: set[int] = set()
        self._clients = itertools.count()
        self._has_served_http = False
        self._status = 0
        self._stop = self._children.stop
        self._scrapes: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Serve until a signal; return the exit status of the process.

        0 after SIGTERM or SIGINT: the server accepts requests for `shutdown_delay_s` while /ready
        fails, then waits up to `shutdown_timeout_s` for answers, and ends the rest with an error.
        1 after a second signal, which kills all children. Raises JaxserveError if the first engine
        or API process cannot work, and RestartLimitError if processes end too often.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        # Only this user can access the folder and the sockets in it.
        with TemporaryDirectory(prefix="jaxserve-", ignore_cleanup_errors=True) as folder:
            self._children.folder = folder
            try:
                await self._run()
            finally:
                await self._children.ended()
        return self._status

    async def _run(self) -> None:
        count = self._config.api_server_count
        engines = [asyncio.create_task(engine.keep()) for engine in self._engines]
        apis = [asyncio.create_task(self._keep_api(slot)) for slot in range(count)]
        stop = asyncio.create_task(self._stop.wait())
        tasks: list[asyncio.Task[Any]] = [*engines, *apis, stop]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set():
                await self._await_rerouting(apis)
            # There is nothing to drain before the server was ready.
            if self._stop.is_set() or self._announce is None:
                await self._drain(engines, apis)
            for task in (*engines, *apis):
                if task.done():
                    task.result()  # raises the error with which a keeper gave up
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _await_rerouting(self, apis: list[asyncio.Task[None]]) -> None:
        """Report not ready but serve for `shutdown_delay_s`, until load balancers have noticed.

        Not if the server never was ready, and only while an API process is running.
        """
        delay_s = self._config.shutdown_delay_s
        if delay_s and self._announce is None:
            log.info("reporting not ready before stopping", delay_s=delay_s)
            self._children.tell_apis(Unready())
            await asyncio.wait(apis, timeout=delay_s)

    async def _drain(
        self, engines: list[asyncio.Task[None]], apis: list[asyncio.Task[None]]
    ) -> None:
        """Let the API processes finish their answers, then stop the engines."""
        log.info("stopping", timeout_s=self._config.shutdown_timeout_s)
        self._stop.set()
        # Otherwise new connections would queue forever on a socket that no process accepts from.
        self._listener.close()
        self._children.tell_apis(Drain())
        await asyncio.wait(apis, timeout=self._config.shutdown_timeout_s + LAST_WORDS_S)
        for engine in self._engines:
            engine.stop()
        # Engines that are loading do not handle messages.
        serving = [
            task for task, engine in zip(engines, self._engines, strict=True) if engine.is_up
        ]
        if serving:
            await asyncio.wait(serving, timeout=STOP_TIMEOUT_S)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._children.kill()
            self._status = 1
        self._stop.set()

    # API processes.

    async def _keep_api(self, slot: int) -> None:
        """Run and restart an API process until the server stops. Raises an error to give up."""
        name = f"api {slot}"
        restarts = self._children.api_restarts(name)
        while True:
            client = next(self._clients)
            end = await self._run_api(client, name, runs_batches=slot == 0)
            if not await restarts.may_restart(end, has_served=self._has_served_http):
                return

    async def _run_api(self, client: int, name: str, *, runs_batches: bool) -> End:
        """Run one API process until it ends, and return how it ended."""
        end: End | None = None
        fd = self._listener.fileno()
        hang_timeout_s = self._config.api_hang_timeout_s
        try:
            api = await self._children.start(name, self._programs.api, pass_fds=(fd,))
        except OSError as error:
            return not_started(error)
        self._children.apis[client] = api
        watch = Watch(
            api.process.pid,
            start_timeout_s=hang_timeout_s,
            hang_timeout_s=hang_timeout_s,
            silent_s=API_SILENT_S,
        )
        api.tell(
            ServeHttp(
                config=self._config,
                fd=fd,
                folder=self._children.folder,
                log_level=self._children.log_level,
                name=name,
                runs_batches=runs_batches,
                waits=bool(self._ready_apis - self._silent_apis),
                num_engines=len(self._engines),
            )
        )
        api.tell(self._batches)
        for engine in self._engines:
            engine.introduce(client)
        try:
            async for message in api.messages(FromApi, watch):
                match message:
                    case Ready():
                        self._has_served_http = True
                        self._ready_apis.add(client)
                        self._announce_once()
                    case Silence():
                        log_silence(name, message)
                        if message.is_silent:
                            self._silent_apis.add(client)
                            self._keep_listening()
                        else:
                            self._silent_apis.discard(client)
                    case Scrape():
                        task = asyncio.create_task(self._scrape(api, message.number))
                        self._scrapes.add(task)
                        task.add_done_callback(self._scrapes.discard)
                    case Batches():
                        self._batches = message
                        self._children.tell_apis(message)
                    case Failed():
                        end = End(reason=message.reason, would_recur=True)
                        break
        except TimeoutError:
            reason = f"it has shown no sign of life for {hang_timeout_s:g} s"
            end = End(reason=reason, would_recur=False)
        api.kill()
        how = await api.ended()
        del self._children.apis[client]
        self._ready_apis.discard(client)
        self._silent_apis.discard(client)
        self._keep_listening()
        self._children.retire(api)
        for process in self._children.engines.values():
            process.tell(ClientGone(client))
        return end or End(reason=f"an API process has ended: {how}", would_recur=not api.was_killed)

    def _keep_listening(self) -> None:
        """Let API processes that are not ready accept connections if no other process does."""
        if not self._ready_apis - self._silent_apis:
            self._children.tell_apis(Listen())

    def _announce_once(self) -> None:
        """Announce the server when all API processes are ready for the first time."""
        if self._announce is None or len(self._ready_apis) < self._config.api_server_count:
            return
        self._announce(tuple(name for engine in self._engines for name in engine.names))
        self._announce = None

    def _taken_names(self, number: int) -> Iterator[str]:
        """Yield the names of the models of the other engines."""
        for engine in self._engines:
            if engine.number != number:
                yield from engine.names

    async def _scrape(self, api: Child, number: int) -> None:
        """Send an API process the merged series of all processes."""
        api.tell(AllSeries(number, await self._children.series()))
