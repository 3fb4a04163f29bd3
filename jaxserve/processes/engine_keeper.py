"""Run and restart an engine of a server, and report its state to the API processes."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from msgspec import Raw

from jaxserve.config.engine import EngineOptions
from jaxserve.config.server import ServerConfig
from jaxserve.processes.children import Children, log_silence
from jaxserve.processes.line import Child, Silence
from jaxserve.processes.messages import (
    EngineDown,
    EngineLoads,
    EngineSilent,
    EngineUp,
    Failed,
    FromEngine,
    Planned,
    Ready,
    ServeEngine,
    Stop,
)
from jaxserve.processes.restarts import End, not_started
from jaxserve.processes.watch import Watch


@dataclass(frozen=True, slots=True, kw_only=True)
class _Up:
    """A ready engine, as reported to API processes."""

    hello: Raw
    address: str


class EngineKeeper:
    """Runs the process of one engine, and restarts it when it ends.

    number: number of the engine in its server, and the label `engine` of its metrics. name: name of
    its process in the log. module: the module to run. taken_names: returns the model names of the
    other engines.
    """

    def __init__(
        self,
        number: int,
        options: EngineOptions,
        config: ServerConfig,
        children: Children,
        *,
        name: str,
        module: str,
        taken_names: Callable[[int], Iterable[str]],
    ) -> None:
        self.number = number
        self._options = options
        self._config = config
        self._children = children
        self._name = name
        self._module = module
        self._taken_names = taken_names
        self._planned: Planned | None = None
        self._up: _Up | None = None
        self._is_silent = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the engine's model; empty until the engine has reported them."""
        return () if self._planned is None else self._planned.names

    @property
    def is_up(self) -> bool:
        """Whether the engine is ready."""
        return self._up is not None

    def stop(self) -> None:
        """Send a Stop message to the process, if it is running."""
        process = self._children.engines.get(self.number)
        if process is not None:
            process.tell(Stop())

    def introduce(self, client: int) -> None:
        """Send an API process the address of the engine, or the model that it is loading."""
        api = self._children.apis[client]
        if self._up is not None:
            api.tell(EngineUp(self.number, self._up.hello, self._up.address, client))
            if self._is_silent:
                api.tell(EngineSilent(self.number, is_silent=True))
        elif self._planned is not None:
            api.tell(EngineLoads(self.number, self._planned.hello))

    async def keep(self) -> None:
        """Run and restart the engine until the server stops. Raises an error to give up."""
        restarts = self._children.engine_restarts(self._name, self.number)
        has_served = False
        for count in itertools.count():
            end = await self._run(f"ipc://{self._children.folder}/engine-{self.number}-{count}")
            has_served = has_served or self.is_up
            self._up = None
            self._children.tell_apis(EngineDown(self.number, end.reason))
            if not await restarts.may_restart(end, has_served=has_served):
                return

    async def _run(self, address: str) -> End:
        """Run one process until it ends, and return how it ended."""
        end: End | None = None
        children, config = self._children, self._config
        try:
            engine = await children.start(self._name, self._module)
        except OSError as error:
            return not_started(error)
        children.engines[self.number] = engine
        watch = Watch(
            engine.process.pid,
            start_timeout_s=config.engine_start_timeout_s,
            hang_timeout_s=config.engine_hang_timeout_s,
        )
        engine.tell(
            ServeEngine(
                number=self.number,
                name=self._name,
                options=self._options,
                address=address,
                folder=children.folder,
                log_level=children.log_level,
            )
        )
        try:
            end = await self._follow(engine, watch, address)
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
        children.retire(engine)
        del children.engines[self.number]
        return end or End(reason=f"the engine has ended: {how}", would_recur=not engine.was_killed)

    async def _follow(self, engine: Child, watch: Watch, address: str) -> End | None:
        """Handle the messages of a process; return the failure that it reports, if any."""
        async for message in engine.messages(FromEngine, watch):
            match message:
                case Planned():
                    taken = {*self._taken_names(self.number)} & {*message.names}
                    if taken:
                        reason = f"two models have the name {min(taken)!r}: give them other names"
                        return End(reason=reason, would_recur=True)
                    self._planned = message
                    self._children.tell_apis(EngineLoads(self.number, message.hello))
                case Ready():
                    assert self._planned is not None
                    self._up = _Up(hello=self._planned.hello, address=address)
                    self._is_silent = False
                    for client in self._children.apis:
                        self.introduce(client)
                case Silence():
                    log_silence(self._name, message)
                    self._is_silent = message.is_silent
                    self._children.tell_apis(EngineSilent(self.number, message.is_silent))
                case Failed():
                    return End(reason=message.reason, would_recur=True)
        return None
