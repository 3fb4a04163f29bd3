"""Main function of the engine process, which runs the model. HTTP and text are in API processes."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from jaxserve.client.wire import SocketPort
from jaxserve.config.engine import EngineOptions
from jaxserve.engine.engine import Engine
from jaxserve.engine.loop import HEARTBEAT_S, run_engine
from jaxserve.errors import JaxserveError
from jaxserve.observability.logging import configure_logging
from jaxserve.observability.metrics import Metrics
from jaxserve.processes.line import ChildLine, freeze_garbage, ignore_signals
from jaxserve.processes.messages import (
    Beat,
    ClientGone,
    Failed,
    Hello,
    Planned,
    Pulse,
    Ready,
    Series,
    ServeEngine,
    Stop,
    TakeSeries,
    ToEngine,
)
from jaxserve.processes.watch import PULSE_S

logger = logging.getLogger(__name__)

FAILED = "the engine has failed; its log says why"


@dataclass(frozen=True, slots=True)
class ServedEngine:
    """A warmed-up engine, and its metrics.

    prepare: prepares what some requests would otherwise wait for; called on a thread once the
    engine serves. is_compiling: whether a step is waiting for a compilation; thread-safe.
    """

    engine: Engine
    metrics: Metrics
    prepare: Callable[[], object] = lambda: None
    is_compiling: Callable[[], bool] = lambda: False


# Loads an engine by its options, and calls the function as soon as the model is known.
type Loader = Callable[[EngineOptions, Callable[[Hello], None], str], ServedEngine]


def main(fd: int, load: Loader) -> int:
    """Load an engine and serve until a Stop message; return the exit status.

    fd: file descriptor of this process's end of the control line.
    """
    ignore_signals()
    line = ChildLine[ToEngine](fd, ToEngine)
    first = line.receive()
    assert isinstance(first, ServeEngine), "the first message must be ServeEngine"
    configure_logging(first.log_level, process=first.name)
    post = _Post(line)
    line.listen(post.obey, folder=first.folder)

    def plan(hello: Hello) -> None:
        line.send(Planned(hello.names, msgspec.Raw(msgspec.json.encode(hello))))

    try:
        served = load(first.options, plan, str(first.number))
        post.metrics = served.metrics
        freeze_garbage()
        with SocketPort(first.address, beat=post.beat, gone=post.take_gone) as port:
            line.send(Ready())
            threading.Thread(
                target=_pulse, args=(line, served), name="jaxserve-pulse", daemon=True
            ).start()
            threading.Thread(target=served.prepare, name="jaxserve-prepare", daemon=True).start()
            run_engine(served.engine, port)
    except JaxserveError as error:
        line.send(Failed(str(error)))
        return 1
    except Exception:
        logger.exception("the engine has failed")
        line.send(Failed(FAILED))
        return 1
    return 0


def _pulse(line: ChildLine[ToEngine], served: ServedEngine) -> None:
    """Send pulses, even during a long step or compilation."""
    while True:
        line.send(Pulse(is_compiling=served.is_compiling()))
        time.sleep(PULSE_S)


class _Post:
    """State set by the supervisor's messages, shared by the line's thread and the engine's loop."""

    def __init__(self, line: ChildLine[ToEngine]) -> None:
        self.metrics: Metrics | None = None
        self._line = line
        self._is_stopping = False
        self._beat_s = 0.0
        self._lock = threading.Lock()
        self._gone: list[int] = []

    def obey(self, message: ToEngine) -> None:
        """Handle a message on the line's thread, so that a scrape does not delay a step."""
        match message:
            case TakeSeries():
                families = () if self.metrics is None else self.metrics.snapshot()
                self._line.send(Series(message.number, families))
            case ClientGone():
                with self._lock:
                    self._gone.append(message.client)
            case Stop():
                self._is_stopping = True

    def beat(self) -> bool:
        """Send a beat if one is due; return whether the loop should continue."""
        now_s = time.monotonic()
        if now_s - self._beat_s >= HEARTBEAT_S:
            self._beat_s = now_s
            self._line.send(Beat())
        return not self._is_stopping

    def take_gone(self) -> list[int]:
        """Return the clients that have ended."""
        if not self._gone:  # the usual case, checked in each step without the lock
            return []
        with self._lock:
            gone, self._gone = self._gone, []
        return gone
