"""The limit on a process's connections, and how room is made for new ones."""

import time
from collections.abc import Callable
from typing import Protocol

# A connection that has waited for its next request this long may be closed for a new one. A client
# that sends its request as soon as it is connected is not affected.
IDLE_S = 1.0
# Connections beyond the limit, to answer probes and refuse others. Many: a probe's request is read
# one or two rounds of the event loop after its connection was accepted, and until then no newer
# connections must push it out.
MAX_SURPLUS = 256


class Closable(Protocol):
    """A connection that waits for a request."""

    def close_idle(self) -> None:
        """Close it, although its client may be about to send a request."""
        ...


class Connections:
    """The connections that wait for a request, oldest first.

    limit: connections at once. Beyond it, those that were idle the longest are closed. If there
    are none, up to `surplus` further connections get answers to probes and errors to all else.
    """

    def __init__(
        self,
        limit: int,
        *,
        surplus: int = MAX_SURPLUS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = limit
        self.hard_limit = limit + surplus
        self._clock = clock
        self._waiting: dict[Closable, float] = {}

    def wait(self, connection: Closable) -> None:
        """A connection waits for a request from now on."""
        self._waiting[connection] = self._clock()

    def leave(self, connection: Closable) -> None:
        """A connection has a request, or is gone."""
        self._waiting.pop(connection, None)

    def make_room(self, idle_s: float = IDLE_S) -> bool:
        """Close the connection that has been idle the longest; return whether there is one.

        idle_s: how long it must have been idle.
        """
        oldest = next(iter(self._waiting), None)
        if oldest is None or self._clock() - self._waiting[oldest] < idle_s:
            return False
        del self._waiting[oldest]
        oldest.close_idle()
        return True
