"""Restart policy for the processes of a server."""

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
    """Why a process ended.

    would_recur: whether a restart would probably fail in the same way. It matters only until a
    process of the kind has served.
    """

    reason: str
    would_recur: bool


def not_started(error: OSError) -> End:
    """Return the end of a process that the operating system failed to start."""
    reason = f"a process of the server could not be started: {error.strerror}"
    return End(reason=reason, would_recur=True)


class Restarts:
    """Restart policy of the process called `name`.

    stop: set when the server stops. counts: counters to increment at each restart.
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
        """Wait until the process may restart; return False if the server stops.

        has_served: whether a process of this kind has ever served. Raises JaxserveError if none has
        and the failure would recur, and RestartLimitError after too many exits.
        """
        if self._stop.is_set():
            return False
        if end.would_recur and not has_served:
            raise JaxserveError(end.reason)
        log.error("process ended", name=self._name, reason=end.reason)
        delay_s = self._backoff.delay_s()
        if delay_s is None:
            config = self._config
            raise RestartLimitError(
                f"the process {self._name!r} ended more than {config.max_restarts} times within"
                f" {config.restart_window_s:g} s (--max-restarts, --restart-window): {end.reason}"
            )
        log.info("restarting process", name=self._name, delay_s=delay_s)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), delay_s)
        if self._stop.is_set():
            return False
        for count in self._counts:
            count.inc()
        return True
