"""The main process of a server: it starts an engine and API processes, and looks after them.

It loads neither JAX nor a tokenizer, and no request passes through it.
"""

import asyncio
import itertools
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from msgspec import Raw

from jaxserve.config.engine import EngineOptions
from jaxserve.config.server import ServerConfig
from jaxserve.observability.logging import get_logger
from jaxserve.observability.series import Family, Kind, SeriesSet, merged
from jaxserve.processes.line import Child, Silence
from jaxserve.processes.messages import (
    AllSeries,
    Batches,
    ClientGone,
    Drain,
    EngineDown,
    EngineLoads,
    EngineSilent,
    EngineUp,
    Failed,
    FromApi,
    FromEngine,
    Listen,
    Planned,
    Ready,
    Scrape,
    ServeEngine,
    ServeHttp,
    Stop,
    Unready,
)
from jaxserve.processes.restarts import End, Restarts
from jaxserve.processes.watch import Watch

log = get_logger(__name__)

# For API processes to end after `shutdown_timeout_s`, and for an idle engine to stop.
LAST_WORDS_S = 5.0
STOP_TIMEOUT_S = 5.0
# An event loop that has not come round for so long keeps all of its clients waiting.
API_SILENT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """The modules that the children run."""

    engine: str = "jaxserve.commands.engine_process"
    api: str = "jaxserve.processes.api"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Up:
    """What API processes are told of an engine that serves."""

    hello: Raw
    address: str


class Supervisor:
    """Runs one server.

    listener: bound already; API processes listen on it. announce: called once, with the names of
    what is served, when requests are welcome.
    """

    def __init__(
        self,
        options: EngineOptions,
        config: ServerConfig,
        *,
        listener: socket.socket,
        announce: Callable[[tuple[str, ...]], None],
        log_level: str = "info",
        programs: Programs | None = None,
    ) -> None:
        self._options = options
        self._config = config
        self._listener = listener
        self._announce: Callable[[tuple[str, ...]], None] | None = announce
        self._log_level = log_level
        self._programs = programs or Programs()
        self._folder = ""
        self._engine: Child | None = None
        self._planned: Planned | None = None
        self._up: _Up | None = None
        self._is_silent = False
        self._apis: dict[int, Child] = {}
        self._ready_apis: set[int] = set()
        self._batches = Batches(None)
        self._silent_apis: set[int] = set()
        self._clients = itertools.count()
        self._has_served_http = False
        # Counts of processes that have ended: a sum over processes must never fall.
        self._retired: tuple[Family, ...] = ()
        self._series = SeriesSet()
        self._num_restarts = {
            kind: self._series.counter(
                "jaxserve:process_restarts",
                "Processes started in place of one that ended, by kind.",
                {"process": kind},
            )
            for kind in ("engine", "api")
        }
        self._status = 0
        self._stop = asyncio.Event()
        self._scrapes: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Serve until told to stop; return the exit status of the process.

        0 after SIGTERM or SIGINT: requests are still taken for `shutdown_delay_s`, though /ready
        says no. Then answers get `shutdown_timeout_s` to finish, and what is left ends with an
        error. 1 after a second signal, which ends everything at once. Raises JaxserveError when the
        first engine or API process cannot work, and RestartLimitError when processes end too often.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        # Readable by this user alone, and so are the sockets in it.
        with TemporaryDirectory(prefix="jaxserve-", ignore_cleanup_errors=True) as self._folder:
            try:
                await self._run()
            finally:
                children = [*self._apis.values(), *([self._engine] if self._engine else [])]
                for child in children:
                    child.kill()
                for child in children:
                    await child.ended()
        return self._status

    async def _run(self) -> None:
        count = self._config.api_server_count
        engine = asyncio.create_task(self._keep_engine())
        apis = [asyncio.create_task(self._keep_api(slot)) for slot in range(count)]
        stop = asyncio.create_task(self._stop.wait())
        tasks: list[asyncio.Task[Any]] = [engine, *apis, stop]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set():
                await self._await_rerouting(apis)
            # Before any client was served there is nothing to drain.
            if self._stop.is_set() or self._announce is None:
                await self._drain(engine, apis)
            for task in (engine, *apis):
                if task.done():
                    task.result()  # raises the error with which a keeper gave up
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _await_rerouting(self, apis: list[asyncio.Task[None]]) -> None:
        """Serve on for `shutdown_delay_s`, not ready, until load balancers send requests elsewhere.

        Nothing routes to a server that never was ready, nor serves once all API processes ended.
        """
        delay_s = self._config.shutdown_delay_s
        if delay_s and self._announce is None:
            log.info("not ready, about to stop", delay_s=delay_s)
            for api in self._apis.values():
                api.tell(Unready())
            await asyncio.wait(apis, timeout=delay_s)

    async def _drain(self, engine: asyncio.Task[None], apis: list[asyncio.Task[None]]) -> None:
        """Let the API processes finish their answers, then stop the engine."""
        log.info("stopping", timeout_s=self._config.shutdown_timeout_s)
        self._stop.set()
        # A connection would wait for ever in the queue of a socket that no process accepts from.
        self._listener.close()
        for api in self._apis.values():
            api.tell(Drain())
        await asyncio.wait(apis, timeout=self._config.shutdown_timeout_s + LAST_WORDS_S)
        if self._engine is not None:
            self._engine.tell(Stop())
            if self._up is not None:  # else it loads, and does not listen
                await asyncio.wait([engine], timeout=STOP_TIMEOUT_S)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            for child in (*self._apis.values(), self._engine):
                if child is not None:
                    child.kill()
            self._status = 1
        self._stop.set()

    # The engine.

    async def _keep_engine(self) -> None:
        """Run engines, one after the other, until told to stop; raises to give up."""
        restarts = self._restarts("engine", "engine")
        has_served = False
        for number in itertools.count():
            end = await self._run_engine(f"ipc://{self._folder}/engine-{number}")
            has_served = has_served or self._up is not None
            self._up = None
            for api in self._apis.values():
                api.tell(EngineDown(end.reason))
            if not await restarts.may_restart(end, has_served=has_served):
                return

    async def _run_engine(self, address: str) -> End:
        """Run one engine, and return how it ended."""
        end: End | None = None
        config = self._config
        try:
            self._engine = engine = await self._start("engine", self._programs.engine)
        except OSError as error:
            return _not_started(error)
        watch = Watch(
            engine.process.pid,
            start_timeout_s=config.engine_start_timeout_s,
            hang_timeout_s=config.engine_hang_timeout_s,
        )
        engine.tell(
            ServeEngine(
                options=self._options,
                address=address,
                folder=self._folder,
                log_level=self._log_level,
            )
        )
        try:
            async for message in engine.messages(FromEngine, watch):
                match message:
                    case Planned():
                        self._planned = message
                        for api in self._apis.values():
                            api.tell(EngineLoads(message.hello))
                    case Ready():
                        assert self._planned is not None
                        self._up = _Up(hello=self._planned.hello, address=address)
                        self._is_silent = False
                        for client in self._apis:
                            self._introduce(client)
                    case Silence():
                        _log_silence("engine", message)
                        self._is_silent = message.is_silent
                        for api in self._apis.values():
                            api.tell(EngineSilent(message.is_silent))
                    case Failed():
                        end = End(reason=message.reason, would_recur=True)
                        break
        except TimeoutError:
            reason = (
                f"the engine has not finished a step for {config.engine_hang_timeout_s:g} s"
                if watch.has_started
                else "the engine does not become ready: it has not used the processor for"
                f" {config.engine_start_timeout_s:g} s (--engine-start-timeout), as if a disk or"
                " the network hangs"
            )
            end = End(reason=reason, would_recur=True)
        engine.kill()
        how = await engine.ended()
        self._retire(engine)
        self._engine = None
        return end or End(reason=f"the engine has ended: {how}", would_recur=not engine.was_killed)

    # API processes.

    async def _keep_api(self, slot: int) -> None:
        """Run API processes in one place, until told to stop; raises to give up."""
        name = f"api {slot}"
        restarts = self._restarts("api", name)
        while True:
            client = next(self._clients)
            end = await self._run_api(client, name, runs_batches=slot == 0)
            if not await restarts.may_restart(end, has_served=self._has_served_http):
                return

    async def _run_api(self, client: int, name: str, *, runs_batches: bool) -> End:
        """Run one API process, and return how it ended."""
        end: End | None = None
        fd = self._listener.fileno()
        hang_timeout_s = self._config.api_hang_timeout_s
        try:
            api = await self._start(name, self._programs.api, pass_fds=(fd,))
        except OSError as error:
            return _not_started(error)
        self._apis[client] = api
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
                folder=self._folder,
                log_level=self._log_level,
                name=name,
                runs_batches=runs_batches,
                waits=bool(self._ready_apis - self._silent_apis),
            )
        )
        api.tell(self._batches)
        if self._up is not None:
            self._introduce(client)
        elif self._planned is not None:
            api.tell(EngineLoads(self._planned.hello))
        try:
            async for message in api.messages(FromApi, watch):
                match message:
                    case Ready():
                        self._has_served_http = True
                        self._ready_apis.add(client)
                        self._announce_once()
                    case Silence():
                        _log_silence(name, message)
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
                        for each in self._apis.values():
                            each.tell(message)
                    case Failed():
                        end = End(reason=message.reason, would_recur=True)
                        break
        except TimeoutError:
            reason = f"it has shown no sign of life for {hang_timeout_s:g} s"
            end = End(reason=reason, would_recur=False)
        api.kill()
        how = await api.ended()
        del self._apis[client]
        self._ready_apis.discard(client)
        self._silent_apis.discard(client)
        self._keep_listening()
        self._retire(api)
        if self._engine is not None:
            self._engine.tell(ClientGone(client))
        return end or End(reason=f"an API process has ended: {how}", would_recur=not api.was_killed)

    def _keep_listening(self) -> None:
        """Let API processes that wait to be ready answer probes, if no other does."""
        if not self._ready_apis - self._silent_apis:
            for api in self._apis.values():
                api.tell(Listen())

    def _introduce(self, client: int) -> None:
        """Tell an API process where the engine is."""
        assert self._up is not None
        up = EngineUp(hello=self._up.hello, address=self._up.address, client=client)
        self._apis[client].tell(up)
        if self._is_silent:
            self._apis[client].tell(EngineSilent(is_silent=True))

    def _announce_once(self) -> None:
        """Say that requests are welcome, when all API processes are ready for the first time."""
        if self._announce is None or len(self._ready_apis) < self._config.api_server_count:
            return
        assert self._planned is not None
        self._announce(self._planned.names)
        self._announce = None

    # What both have in common.

    def _restarts(self, kind: str, name: str) -> Restarts:
        return Restarts(name, self._config, stop=self._stop, count=self._num_restarts[kind])

    async def _start(self, name: str, module: str, *, pass_fds: Sequence[int] = ()) -> Child:
        """Start a child; raises OSError."""
        child = await Child.start(name, module, pass_fds=pass_fds)
        if self._stop.is_set():  # since the start began, so that nothing has told it to end
            child.kill()
        return child

    async def _scrape(self, api: Child, number: int) -> None:
        """Answer an API process with the series of all."""
        children = [*self._apis.values(), *([self._engine] if self._engine else [])]
        snapshots = await asyncio.gather(*(child.series() for child in children))
        own = self._series.snapshot()
        api.tell(AllSeries(number, merged([*snapshots, own, self._retired])))

    def _retire(self, child: Child) -> None:
        """Keep what a process that has ended has counted."""
        counts = (family for family in child.last_series if family.kind is not Kind.GAUGE)
        self._retired = merged([self._retired, counts])


def _not_started(error: OSError) -> End:
    reason = f"a process of the server could not be started: {error.strerror}"
    return End(reason=reason, would_recur=True)


def _log_silence(name: str, silence: Silence) -> None:
    if silence.is_silent:
        log.warning("a process does not answer", name=name)
    else:
        log.info("a process answers again", name=name)
