"""Who holds which page of the KV cache."""

from collections import Counter
from collections.abc import Iterable

from jaxserve.api.plan import RUBBISH_PAGE
from jaxserve.engine.prefix_cache import PrefixCache


class PageAllocator:
    """Gives out page numbers and counts who uses them.

    Every page but the rubbish page is in exactly one state:

        held    one or more references
        idle    none, but its contents can be found through the prefix cache
        free    none, contents worthless

    Idle pages are memory like free ones, only taken last: `num_free` counts both, less those that
    are reserved: promised, but not chosen yet. All operations are O(1) per page.
    """

    def __init__(self, num_pages: int, prefix_cache: PrefixCache) -> None:
        self._prefix_cache = prefix_cache
        self._num_reserved = 0
        self._references = [0] * num_pages
        # A stack: the page freed last is taken first. Low numbers first, for readable tests.
        self._free = [page for page in range(num_pages - 1, -1, -1) if page != RUBBISH_PAGE]

    @property
    def num_pages(self) -> int:
        """Pages that can be held at all; the rubbish page is not one of them."""
        return len(self._references) - 1

    @property
    def num_free(self) -> int:
        """Pages that can be allocated or reserved now."""
        return len(self._free) + self._prefix_cache.num_idle - self._num_reserved

    @property
    def num_worthless(self) -> int:
        """Pages that can be allocated or reserved without forgetting anything; at least 0."""
        return max(len(self._free) - self._num_reserved, 0)

    @property
    def num_held(self) -> int:
        """Pages that somebody uses."""
        return self.num_pages - len(self._free) - self._prefix_cache.num_idle

    def can_allocate(self, num_pages: int, *, sharing: Iterable[int] = ()) -> bool:
        """Whether `num_pages` could be allocated after `sharing` were shared."""
        num_woken = sum(1 for page in sharing if self._prefix_cache.is_idle(page))
        return num_pages + num_woken <= self.num_free

    def allocate(self, num_pages: int) -> list[int]:
        """Take pages with one reference each, forgetting idle ones when no other is left."""
        assert self.can_allocate(num_pages), f"{num_pages} pages wanted, {self.num_free} free"
        taken: list[int] = []
        for _ in range(num_pages):
            page = self._free.pop() if self._free else self._prefix_cache.evict()
            self._references[page] = 1
            taken.append(page)
        return taken

    def reserve(self, num_pages: int) -> None:
        """Promise pages, to be allocated later."""
        assert self.can_allocate(num_pages), f"{num_pages} pages wanted, {self.num_free} free"
        self._num_reserved += num_pages

    def cancel(self, num_pages: int) -> None:
        """Take back the promise of pages, in order to allocate them or because nobody will."""
        assert self._num_reserved >= num_pages, "more was promised back than out"
        self._num_reserved -= num_pages

    def share(self, pages: Iterable[int]) -> None:
        """Add a reference to pages found in the prefix cache."""
        for page in pages:
            if self._references[page] == 0:
                self._prefix_cache.wake(page)
            self._references[page] += 1

    def free(self, pages: list[int]) -> None:
        """Drop one reference to each page of a sequence, given in the order of its tokens."""
        # Last page first, so that of one prefix the tail is forgotten before the head: a head
        # without its tail is still of use, a tail without its head can never be found.
        for page in reversed(pages):
            assert self._references[page] > 0, f"page {page} freed twice"
            self._references[page] -= 1
            if self._references[page] == 0:
                if page in self._prefix_cache:
                    self._prefix_cache.rest(page)
                else:
                    self._free.append(page)

    def forget_prefixes(self) -> None:
        """Empty the prefix cache; pages in use stay with their holders."""
        self._free.extend(self._prefix_cache.reset())

    def check_integrity(self, held: Iterable[int], *, num_reserved: int = 0) -> None:
        """Assert that the states partition the pages; `held`: every page once per holder."""
        self._prefix_cache.check_integrity()
        assert self._num_reserved == num_reserved, "a promise is lost"
        assert self.num_free >= 0, "more was promised than there is"
        holders = Counter(held)
        free = set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        assert RUBBISH_PAGE not in free, "the rubbish page is free"
        assert RUBBISH_PAGE not in holders, "the rubbish page is held"
        for page in range(len(self._references)):
            assert self._references[page] == holders[page], f"page {page} has lost a reference"
            states = (holders[page] > 0, self._prefix_cache.is_idle(page), page in free)
            assert sum(states) == (page != RUBBISH_PAGE), f"page {page} is in {sum(states)} states"
