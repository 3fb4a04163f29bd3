"""Whether and when a process that ended starts again."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from jaxserve.config.server import ServerConfig
from jaxserve.errors import JaxserveError, RestartLimitError
from jaxserve.observability.logging import get_logger
from jaxserve.observability.series import Value
from jaxserve.processes.backoff import Backoff

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a process ended.

    would_recur: whether another start would end the same way, as far as one can tell. It decides
    only while no process of the kind has served.
    """

    reason: str
    would_recur: bool


def not_started(error: OSError) -> End:
    """Return the end of a process that the operating system did not start."""
    reason = f"a process of the server could not be started: {error.strerror}"
    return End(reason=reason, would_recur=True)


class Restarts:
    """The restarts of one process of a server, named `name`.

    stop: set when the server stops. counts: each counts the restarts.
    """

    def __init__(
        self, name: str, config: ServerConfig, *, stop: asyncio.Event, counts: Sequence[Value]
    ) -> None:
        self._name = name
        self._config = config
        self._stop = stop
        self._counts = counts
        self._backoff = Backoff(
            limit=config.max_restarts,
            window_s=config.restart_window_s,
            first_delay_s=config.restart_delay_s,
        )

    async def may_restart(self, end: End, *, has_served: bool) -> bool:
        """Wait until the process may start again; return False if the server stops.

        has_served: whether a process of the kind ever did. Raises JaxserveError if none did and
        none would, and RestartLimitError after too many ends.
        """
        if self._stop.is_set():
            return False
        if end.would_recur and not has_served:
            raise JaxserveError(end.reason)
        log.error("a process has ended", name=self._name, reason=end.reason)
        delay_s = self._backoff.delay_s()
        if delay_s is None:
            config = self._config
            raise RestartLimitError(
                f"the process {self._name!r} ended more than {config.max_restarts} times within"
                f" {config.restart_window_s:g} s (--max-restarts, --restart-window): {end.reason}"
            )
        log.info("a process will start again", name=self._name, delay_s=delay_s)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), delay_s)
        if self._stop.is_set():
            return False
        for count in self._counts:
            count.inc()
        return True
