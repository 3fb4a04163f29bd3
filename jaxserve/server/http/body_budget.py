"""The memory that the bodies of all requests may take at once."""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxserve.server.errors import BodiesFullError


class BodyBudget:
    """Counts the bytes of bodies that are being received or parsed.

    num_bytes: counted now. max_bytes: of all of them. free_bytes: the beginning of each body, which
    does not count, so that short requests get through whatever others do: the limit on connections
    bounds them.
    """

    def __init__(self, max_bytes: int, *, free_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._free_bytes = free_bytes
        self.num_bytes = 0

    @contextmanager
    def lease(self) -> Iterator["Lease"]:
        """Give what one body is counted with, for as long as its bytes are kept."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            self.num_bytes -= lease.num_counted

    def count(self, num_bytes: int, num_counted: int) -> int:
        """Count a body that has grown to `num_bytes`, and return how many of them count.

        num_counted: how many did before. Raises BodiesFullError.
        """
        counting = max(0, num_bytes - self._free_bytes)
        if self.num_bytes - num_counted + counting > self._max_bytes:
            raise BodiesFullError(self._max_bytes)
        self.num_bytes += counting - num_counted
        return counting


class Lease:
    """One body's share of a budget. num_counted: bytes of it that count."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.num_counted = 0

    def hold(self, num_bytes: int) -> None:
        """Count a body that has so many bytes now; raises BodiesFullError."""
        self.num_counted = self._budget.count(num_bytes, self.num_counted)
