"""When what has ended may start again."""

import time
from collections import deque
from collections.abc import Callable


class Backoff:
    """Delays that double with each end within a window; after so many ends there are no more.

    An end that is older than the window is forgotten.
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
        self._clock = clock
        self._ends_s: deque[float] = deque()

    def delay_s(self) -> float | None:
        """Return how long to wait after an end that has just come, or None to give up."""
        now_s = self._clock()
        while self._ends_s and self._ends_s[0] <= now_s - self._window_s:
            self._ends_s.popleft()
        self._ends_s.append(now_s)
        count = len(self._ends_s)
        return None if count > self._limit else self._first_delay_s * 2.0 ** (count - 1)
