"""The child processes of a server, their restarts and their metrics."""

import asyncio
from collections.abc import Sequence

from jaxserve.config.server import ServerConfig
from jaxserve.observability.logging import get_logger
from jaxserve.observability.series import Family, Kind, SeriesSet, Value, merged
from jaxserve.processes.line import Child, Silence
from jaxserve.processes.messages import ToApi
from jaxserve.processes.restarts import Restarts

log = get_logger(__name__)


class Children:
    """State shared by the supervisor and the keepers of engines.

    folder: folder for sockets, accessible only to this user; set once the server runs. apis: the
    API processes by client number. engines: the engine processes by engine number. stop: set when
    the server stops. log_level: level of their logs.
    """

    def __init__(self, config: ServerConfig, *, num_engines: int, log_level: str) -> None:
        self.log_level = log_level
        self.folder = ""
        self.apis: dict[int, Child] = {}
        self.engines: dict[int, Child] = {}
        self.stop = asyncio.Event()
        self._config = config
        self._series = SeriesSet()
        self._engine_restarts = [self._engine_count(number) for number in range(num_engines)]
        self._restarts = {kind: self._count(kind) for kind in ("engine", "api")}
        # Counts of processes that have ended, because a sum over processes must never fall.
        self._retired: tuple[Family, ...] = ()

    async def start(self, name: str, module: str, *, pass_fds: Sequence[int] = ()) -> Child:
        """Start a child. Raises OSError."""
        child = await Child.start(name, module, pass_fds=pass_fds)
        if self.stop.is_set():  # the server began to stop during the start
            child.kill()
        return child

    def retire(self, child: Child) -> None:
        """Keep the counts of a process that has ended."""
        counts = (family for family in child.last_series if family.kind is not Kind.GAUGE)
        self._retired = merged([self._retired, counts])

    def kill(self) -> None:
        """Kill all children."""
        for child in self._all():
            child.kill()

    async def ended(self) -> None:
        """Kill all children, and wait until they have ended."""
        children = self._all()
        self.kill()
        for child in children:
            await child.ended()

    def tell_apis(self, message: ToApi) -> None:
        """Send a message to every API process."""
        for api in self.apis.values():
            api.tell(message)

    def api_restarts(self, name: str) -> Restarts:
        """Return the restart policy of an API process."""
        return Restarts(name, self._config, stop=self.stop, counts=[self._restarts["api"]])

    def engine_restarts(self, name: str, number: int) -> Restarts:
        """Return the restart policy of an engine."""
        counts = [self._restarts["engine"], self._engine_restarts[number]]
        return Restarts(name, self._config, stop=self.stop, counts=counts)

    async def series(self) -> tuple[Family, ...]:
        """Return the merged series of all processes, including those that have ended."""
        snapshots = await asyncio.gather(*(child.series() for child in self._all()))
        return merged([*snapshots, self._series.snapshot(), self._retired])

    def _all(self) -> list[Child]:
        return [*self.apis.values(), *self.engines.values()]

    def _count(self, kind: str) -> Value:
        return self._series.counter(
            "jaxserve:process_restarts",
            "Processes started in place of one that ended, by kind.",
            {"process": kind},
        )

    def _engine_count(self, number: int) -> Value:
        return self._series.counter(
            "jaxserve:engine_restarts",
            "Processes started in place of an engine's that ended.",
            {"engine": str(number)},
        )


def log_silence(name: str, silence: Silence) -> None:
    """Log that a process is not responding, or responds again."""
    if silence.is_silent:
        log.warning("process is not responding", name=name)
    else:
        log.info("process is responding again", name=name)
