"""Limit the memory used by all request bodies together."""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxserve.server.errors import BodiesFullError


class BodyBudget:
    """Budget for the bytes of bodies that are being received or parsed.

    num_bytes: bytes counted now. max_bytes: the limit. free_bytes: number of bytes of each body
    that do not count, so that short requests are always accepted; the limit on connections bounds
    them.
    """

    def __init__(self, max_bytes: int, *, free_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._free_bytes = free_bytes
        self.num_bytes = 0

    @contextmanager
    def lease(self) -> Iterator["Lease"]:
        """Yield the account of one body; its bytes are released at the end."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            self.num_bytes -= lease.num_counted

    def count(self, num_bytes: int, num_counted: int) -> int:
        """Count a body that has grown to `num_bytes`; return how many of them count.

        num_counted: the previous return value. Raises BodiesFullError.
        """
        counting = max(0, num_bytes - self._free_bytes)
        if self.num_bytes - num_counted + counting > self._max_bytes:
            raise BodiesFullError(self._max_bytes)
        self.num_bytes += counting - num_counted
        return counting


class Lease:
    """One body's share of a budget. num_counted: number of its bytes that count."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.num_counted = 0

    def hold(self, num_bytes: int) -> None:
        """Set the current size of the body. Raises BodiesFullError."""
        self.num_counted = self._budget.count(num_bytes, self.num_counted)
