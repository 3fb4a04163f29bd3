"""Groups of recurrent states: the current state of a sequence, and checkpoints of it."""

from collections.abc import Sequence
from typing import override

from jaxserve.api.caches import StateGroup
from jaxserve.api.plan import NULL_PAGE, TableWrite
from jaxserve.engine.cache_group import UNBOUNDED, GroupManager, Holding
from jaxserve.engine.pages import PageAllocator


class StateManager(GroupManager):
    """Manager of a state group: one page per sequence, and checkpoints at page boundaries."""

    holds_tokens = False
    is_sparse = True
    is_rewindable = False

    def __init__(
        self, group: StateGroup, pool: PageAllocator, *, tag: bytes, page_size: int
    ) -> None:
        super().__init__(group, pool, tag=tag, page_size=page_size)
        self.span = group.checkpoint_interval * page_size

    @override
    def num_wanted(self, length: int) -> int:
        # One page to write, and a checkpoint to start from.
        return 2

    @override
    def longest(self, digests: Sequence[bytes], limit: int) -> int:
        counts = range(limit, 0, -1)
        return next((n for n in counts if self.page_of(digests[n - 1]) is not None), 0)

    @override
    def shared(self, digests: Sequence[bytes], count: int) -> list[int]:
        page = self.page_of(digests[count - 1]) if count else None
        return [] if page is None else [page]

    @override
    def num_new(self, length: int, count: int, shared: list[int]) -> int:
        return 1

    @override
    def enter(
        self, length: int, count: int, shared: list[int], table: list[TableWrite], *, leaves: bool
    ) -> "StateHolding":
        self.pool.share(shared)
        start = count * self.page_size
        # Other sequences can start after the last full page before the last known token.
        last = (length - 1) // self.page_size * self.page_size
        return StateHolding(self, start, shared, last_checkpoint=last if leaves else None)


class StateHolding(Holding):
    """Pages of a sequence: the current state, and earlier states that are or become checkpoints.

    After a step that ends at a checkpoint, the next step reads that step's page and writes a new
    one. So a checkpoint takes a page but no copy. Without a free page, it is skipped.

    Checkpoints are at the end of the prompt, where the prompt leaves others that share its pages,
    and at regular intervals. A sequence that decodes also has one at the end of its last full
    page, which replaces the one before, so that a next turn can start from its answer.
    """

    __slots__ = (
        "_earlier",
        "_latest",
        "_manager",
        "_page",
        "_planned",
        "_read",
        "_sent",
        "num_reserved",
    )

    def __init__(
        self, manager: StateManager, start: int, shared: list[int], *, last_checkpoint: int | None
    ) -> None:
        self._manager = manager
        # Planned checkpoints, ascending, beside the regular ones; none if there are none at all.
        self._planned = () if last_checkpoint is None else (last_checkpoint,)
        # Digest and page of the last checkpoint of the answer.
        self._latest: tuple[bytes, int] | None = None
        # (number of tokens, page with the state after them)
        self._earlier = [(start, page) for page in shared]
        self._read = shared[0] if shared else NULL_PAGE
        self._page: int | None = None
        self._sent: TableWrite | None = None
        self.num_reserved = 1
        manager.pool.reserve(1)

    @property
    @override
    def pages(self) -> list[int]:
        return [page for _, page in self._earlier] + ([] if self._page is None else [self._page])

    @override
    def written(self, num_computed: int) -> list[int]:
        del num_computed
        return [] if self._page is None else [self._page]

    @override
    def num_missing(self, length: int) -> int:
        return int(self._page is None)

    @override
    def num_lacking(self, stop: int) -> int:
        return 0

    @override
    def max_stop(self, start: int) -> int:
        # Stop at the next checkpoint.
        if not self._planned:
            return UNBOUNDED
        regular = (start // self._manager.span + 1) * self._manager.span
        return min([regular, *(stop for stop in self._planned if stop > start)])

    @override
    def leaves_start(self, page: int) -> bool:
        return bool(self._planned) and self._stays((page + 1) * self._manager.page_size)

    @override
    def plan_checkpoint(self, stop: int) -> None:
        self._planned = tuple(sorted({*self._planned, stop}))

    def _stays(self, stop: int) -> bool:
        """Whether the checkpoint after `stop` tokens is not replaced by later ones."""
        return stop % self._manager.span == 0 or stop in self._planned

    def _next_checkpoint(self, stop: int) -> int:
        """Return the position of the next checkpoint of a sequence that decodes."""
        if not self._planned or stop < self._planned[-1]:
            return self.max_stop(stop)
        # Regular checkpoints are at the ends of pages, too.
        return (stop // self._manager.page_size + 1) * self._manager.page_size

    @override
    def extend(self, start: int, stop: int, table: list[TableWrite]) -> int:
        pool = self._manager.pool
        if self._page is None:
            pool.cancel(1)
            self.num_reserved = 0
            (self._page,) = pool.allocate(1)
        write = TableWrite(self._manager.first_column, (self._read, self._page))
        if write != self._sent:
            table.append(write)
            self._sent = write
        self._read = self._page
        # Forced tokens may pass the end of a page without a checkpoint.
        if stop in {self.max_stop(start), self._next_checkpoint(start)} and pool.can_allocate(1):
            self._earlier.append((stop, self._page))
            (self._page,) = pool.allocate(1)
        if write.pages != (self._read, self._page):
            return stop  # the next row needs new columns
        return max(stop, self._next_checkpoint(stop) - 1)

    @override
    def register(self, digests: Sequence[bytes], first: int, stop: int) -> None:
        for length, page in self._earlier:
            index = length // self._manager.page_size - 1
            if first <= index < stop:
                self._manager.register(digests[index], page)
                if not self._stays(length):
                    self._replace_latest(digests[index], page)

    def _replace_latest(self, digest: bytes, page: int) -> None:
        """Remove the last checkpoint of the answer from the prefix cache, and note the new one."""
        if self._latest is not None and self._manager.page_of(self._latest[0]) == self._latest[1]:
            self._manager.unregister(self._latest[:1])
        self._latest = (digest, page)

    @override
    def release(self, num_computed: int, length: int, table: list[TableWrite]) -> int:
        # The step that reads a checkpoint has been committed.
        read = [page for stop, page in self._earlier if stop < num_computed]
        self._earlier = [each for each in self._earlier if each[0] >= num_computed]
        self._manager.pool.free(read)
        return 0

    @override
    def leave(self) -> None:
        self._manager.pool.free(self.pages)
        self._manager.pool.cancel(self.num_reserved)
