"""Exponential backoff for restarting processes."""

import time
from collections import deque
from collections.abc import Callable

# Longer delays would only prolong an outage.
MAX_DELAY_S = 60.0


class Backoff:
    """Delays that double with each exit within a sliding window, up to MAX_DELAY_S.

    limit: number of exits within the window after which to give up. window_s, first_delay_s: in
    seconds.
    """

    def __init__(
        self,
        *,
        limit: int,
        window_s: float,
        first_delay_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._window_s = window_s
        self._first_delay_s = first_delay_s
        self._max_delay_s = max(first_delay_s, MAX_DELAY_S)
        self._clock = clock
        self._ends_s: deque[float] = deque()

    def delay_s(self) -> float | None:
        """Record an exit; return the delay before the restart in seconds, or None to give up."""
        now_s = self._clock()
        while self._ends_s and self._ends_s[0] <= now_s - self._window_s:
            self._ends_s.popleft()
        self._ends_s.append(now_s)
        count = len(self._ends_s)
        if count > self._limit:
            return None
        num_doublings = min(count - 1, 100)  # 2.0**1024 would overflow
        return min(self._first_delay_s * 2.0**num_doublings, self._max_delay_s)
