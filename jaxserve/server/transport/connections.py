"""The limit on a process's connections, and how room is made for new ones."""

import time
from collections.abc import Callable
from itertools import islice
from typing import Protocol

# A connection that has waited for its next request this long may be closed for a new one. A client
# that sends its request as soon as it is connected is not affected.
IDLE_S = 1.0
# Connections beyond the limit, to answer probes and refuse others. Many: a probe's request is read
# one or two rounds of the event loop after its connection was accepted, and until then no newer
# connections must push it out.
MAX_SURPLUS = 256
# A connection has this long to send its request before a newer one may push it out.
GRACE_S = 0.05


class Closable(Protocol):
    """A connection that waits for a request."""

    def close_idle(self) -> None:
        """Close it, although its client may be about to send a request."""
        ...


class Connections:
    """The connections that wait for a request, oldest first.

    limit: connections at once. Beyond it, those that were idle the longest are closed. If there
    are none, up to `surplus` further connections wait: a request on one of them takes the place of
    a connection without a request, and where there is none, it is answered if it is a probe.
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

    def crowded_s(self, num_open: int) -> float:
        """Return for how long no further connection should be accepted, `num_open` being open.

        Beyond the hard limit each new connection pushes out an old one, which must have had its
        chance to send a request.
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
