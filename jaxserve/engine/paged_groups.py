"""Groups of KV pages: for all tokens of a sequence, or for those in a sliding window."""

from collections.abc import Sequence
from itertools import islice
from typing import override

from jaxserve.api.caches import WindowGroup
from jaxserve.api.plan import TableWrite
from jaxserve.engine.cache_group import GroupManager, Holding
from jaxserve.engine.pages import PageAllocator


class PagedManager(GroupManager):
    """Manager of a group that keeps every token."""

    releases = False

    @override
    def num_wanted(self, length: int) -> int:
        return self.pages_for(length)

    @override
    def longest(self, digests: Sequence[bytes], limit: int) -> int:
        return len(self.shared(digests, limit))

    @override
    def shared(self, digests: Sequence[bytes], count: int) -> list[int]:
        tag = self.tag
        return self.pool.prefix_cache.find([digest + tag for digest in islice(digests, count)])

    @override
    def num_new(self, length: int, count: int, shared: list[int]) -> int:
        return self.pages_for(length) - count

    @override
    def enter(
        self, length: int, count: int, shared: list[int], table: list[TableWrite], *, leaves: bool
    ) -> "PagedHolding":
        self.pool.share(shared)
        holding = PagedHolding(self, shared, self.num_new(length, count, shared))
        self.num_begun += count
        if shared:
            table.append(TableWrite(self.first_column, tuple(shared)))
        return holding


class PagedHolding(Holding):
    """Pages of a sequence with the indices [first, first + len(pages))."""

    __slots__ = ("_manager", "first", "num_reserved", "pages")

    pages: list[int]

    def __init__(self, manager: GroupManager, pages: list[int], num_reserved: int) -> None:
        self._manager = manager
        self.first = 0
        self.pages = pages
        self.num_reserved = num_reserved
        manager.pool.reserve(num_reserved)

    @property
    @override
    def num_begun(self) -> int:
        return self.first + len(self.pages)

    @override
    def written(self, num_computed: int) -> list[int]:
        return self.pages[num_computed // self._manager.page_size - self.first :]

    @override
    def num_missing(self, length: int) -> int:
        return self._manager.pages_for(length) - self.first - len(self.pages)

    @override
    def num_lacking(self, stop: int) -> int:
        num_new = -(-stop // self._manager.page_size) - self.first - len(self.pages)
        return max(num_new - self.num_reserved, 0)

    def _column(self) -> int:
        """Return the column of the page at index `first`."""
        return self._manager.first_column

    @override
    def extend(self, start: int, stop: int, table: list[TableWrite]) -> int:
        manager, pages = self._manager, self.pages
        num_begun = self.first + len(pages)
        num_new = -(-stop // manager.page_size) - num_begun
        if num_new > 0:
            if self.num_reserved:
                promised = min(num_new, self.num_reserved)
                manager.pool.cancel(promised)
                self.num_reserved -= promised
            new = manager.pool.allocate(num_new)
            table.append(TableWrite(self._column() + len(pages), tuple(new)))
            pages += new
            manager.num_begun += num_new
            num_begun += num_new
        return num_begun * manager.page_size

    @override
    def register(self, digests: Sequence[bytes], first: int, stop: int) -> None:
        tag, register = self._manager.tag, self._manager.pool.prefix_cache.register
        for page in range(first, stop):
            register(digests[page] + tag, self.pages[page - self.first])

    @override
    def leave(self) -> None:
        self._manager.num_begun -= self.num_begun
        self._manager.pool.free(self.pages)
        self._manager.pool.cancel(self.num_reserved)


class WindowManager(PagedManager):
    """Manager of a sliding-window group: pages behind the window are released.

    Released pages stay in the prefix cache until they are evicted. Pages are shared `rolling` (see
    PageAllocator.share), so releasing a page always makes room for the next one, and the pages
    reserved at the start suffice to the end of the sequence's known tokens.
    """

    releases = True

    def __init__(
        self, group: WindowGroup, pool: PageAllocator, *, tag: bytes, page_size: int
    ) -> None:
        super().__init__(group, pool, tag=tag, page_size=page_size)
        self.window = group.window
        self.max_pages = group.max_pages

    def first_seen(self, position: int) -> int:
        """Return the index of the first page in the window of the token at `position`."""
        return max(position - self.window + 1, 0) // self.page_size

    @override
    def num_wanted(self, length: int) -> int:
        return min(self.pages_for(length), self.max_pages)

    @override
    def longest(self, digests: Sequence[bytes], limit: int) -> int:
        # All pages in the window of the next token must be cached.
        count, first = limit, limit
        while count > 0:
            needed = self.first_seen(count * self.page_size)
            while first > needed and self.page_of(digests[first - 1]) is not None:
                first -= 1
            if first <= needed:
                return count
            count = first = first - 1
        return 0

    @override
    def shared(self, digests: Sequence[bytes], count: int) -> list[int]:
        first = self.first_seen(count * self.page_size)
        found = [self.page_of(digest) for digest in islice(digests, first, count)]
        return [page for page in found if page is not None]

    @override
    def num_new(self, length: int, count: int, shared: list[int]) -> int:
        num_later = self.pages_for(length) - count + len(shared)
        return min(num_later, self.max_pages) - len(shared)

    @override
    def num_taken(self, shared: list[int]) -> int:
        return len(shared)

    @override
    def enter(
        self, length: int, count: int, shared: list[int], table: list[TableWrite], *, leaves: bool
    ) -> "WindowHolding":
        self.pool.share(shared, rolling=True)
        holding = WindowHolding(self, shared, self.num_new(length, count, shared))
        holding.first = count - len(shared)
        self.num_begun += count
        table.append(holding.whole())
        return holding


class WindowHolding(PagedHolding):
    """Pages of a sequence, from the first one in the window of its next token."""

    __slots__ = ()
    is_rolling = True
    _manager: WindowManager

    @override
    def _column(self) -> int:
        return self._manager.first_column + 1

    def whole(self) -> TableWrite:
        """Return a write of all columns of the group."""
        return TableWrite(self._manager.first_column, (self.first, *self.pages))

    @override
    def num_missing(self, length: int) -> int:
        num_later = self._manager.pages_for(length) - self.first
        return min(num_later, self._manager.max_pages) - len(self.pages)

    @override
    def extend(self, start: int, stop: int, table: list[TableWrite]) -> int:
        assert stop <= self.max_stop(start), "more pages than the page table has columns for"
        return super().extend(start, stop, table)

    @override
    def max_stop(self, start: int) -> int:
        del start
        return (self.first + self._manager.max_pages) * self._manager.page_size

    @override
    def release(self, num_computed: int, length: int, table: list[TableWrite]) -> int:
        num_behind = self._manager.first_seen(num_computed) - self.first
        if num_behind <= 0:
            return 0
        behind = self.pages[:num_behind]
        del self.pages[:num_behind]
        self.first += num_behind
        pool = self._manager.pool
        pool.free(behind, rolling=True)
        num_more = max(self.num_missing(length) - self.num_reserved, 0)
        pool.reserve(num_more)
        self.num_reserved += num_more
        table.append(self.whole())
        return num_behind

    @override
    def leave(self) -> None:
        self._manager.num_begun -= self.num_begun
        self._manager.pool.free(self.pages, rolling=True)
        self._manager.pool.cancel(self.num_reserved)
