"""The limit on a process's connections, and eviction of idle ones."""

import time
from collections.abc import Callable
from itertools import islice
from typing import Protocol

# An idle connection may be closed for a new one after this time. Clients that send their request
# as soon as they are connected are not affected.
IDLE_S = 1.0
# Connections above the limit, for answering probes and refusing other requests. Large, because a
# probe is read one or two iterations of the event loop after its connection was accepted, and newer
# connections must not evict it before.
MAX_SURPLUS = 256
# A new connection cannot be evicted for this long.
GRACE_S = 0.05


class Closable(Protocol):
    """An idle connection."""

    def close_idle(self) -> None:
        """Close the connection, although its client may be about to send a request."""
        ...


class Connections:
    """The idle connections, longest idle first.

    limit: maximum number of connections; above it, the longest idle one is closed. If none is idle,
    up to `surplus` further connections are accepted. A request on one of these evicts an idle
    connection; without one, the request is answered only if it is a probe.
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
        """Add a connection that is now idle."""
        self._waiting[connection] = self._clock()

    def leave(self, connection: Closable) -> None:
        """Remove a connection that has a request or was closed."""
        self._waiting.pop(connection, None)

    def crowded_s(self, num_open: int) -> float:
        """Return how long to pause accepting, in seconds, with `num_open` open connections.

        Above the hard limit, each new connection evicts an old one, which must first have had time
        to send a request.
        """
        excess = num_open - self.hard_limit
        since_s = next(islice(self._waiting.values(), excess, None), None) if excess >= 0 else None
        return 0.0 if since_s is None else max(0.0, since_s + GRACE_S - self._clock())

    def make_room(self, idle_s: float = IDLE_S, *, keep: Closable | None = None) -> bool:
        """Close the connection that has been idle the longest; return whether there is one.

        idle_s: how long it must have been idle. keep: a connection that must stay.
        """
        oldest = next((each for each in self._waiting if each is not keep), None)
        if oldest is None or self._clock() - self._waiting[oldest] < idle_s:
            return False
        del self._waiting[oldest]
        oldest.close_idle()
        return True
