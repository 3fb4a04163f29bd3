"""Who holds which page of the KV cache."""

from collections import Counter
from collections.abc import Iterable

from jaxserve.api.plan import NULL_PAGE
from jaxserve.engine.prefix_cache import PrefixCache


class PageAllocator:
    """Gives out page numbers and counts who uses them.

    Every page but the null page is in exactly one state:

        held    one or more references
        idle    none, but its contents can be found through the prefix cache
        free    none, contents worthless

    Idle pages are memory like free ones, only taken last: `num_free` counts both, less those that
    are reserved: promised, but not chosen yet. All operations are O(1) per page.
    """

    def __init__(self, num_pages: int, prefix_cache: PrefixCache) -> None:
        self.prefix_cache = prefix_cache
        self._num_reserved = 0
        self._references = [0] * num_pages
        # A stack: the page freed last is taken first. Low numbers first, for readable tests.
        self._free = [page for page in range(num_pages - 1, -1, -1) if page != NULL_PAGE]

    @property
    def num_pages(self) -> int:
        """Pages that can be held at all; the null page is not one of them."""
        return len(self._references) - 1

    @property
    def num_free(self) -> int:
        """Pages that can be allocated or reserved now."""
        return len(self._free) + self.prefix_cache.num_idle - self._num_reserved

    @property
    def num_worthless(self) -> int:
        """Pages that can be allocated or reserved without forgetting anything; at least 0."""
        return max(len(self._free) - self._num_reserved, 0)

    @property
    def num_held(self) -> int:
        """Pages that somebody uses."""
        return self.num_pages - len(self._free) - self.prefix_cache.num_idle

    def can_allocate(self, num_pages: int) -> bool:
        """Whether so many pages can be allocated or reserved."""
        return num_pages <= self.num_free

    def num_idle(self, pages: Iterable[int]) -> int:
        """Count the pages that sharing would take from `num_free`."""
        return sum(1 for page in pages if self.prefix_cache.is_idle(page))

    def allocate(self, num_pages: int) -> list[int]:
        """Take pages with one reference each, forgetting idle ones when no other is left."""
        assert num_pages <= self.num_free, f"{num_pages} pages wanted, {self.num_free} free"
        taken: list[int] = []
        for _ in range(num_pages):
            page = self._free.pop() if self._free else self.prefix_cache.evict()
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

    def share(self, pages: Iterable[int], *, rolling: bool = False) -> None:
        """Add a reference to pages found in the prefix cache."""
        for page in pages:
            if self._references[page] == 0:
                self.prefix_cache.wake(page)
            elif rolling:
                self.reserve(1)
            self._references[page] += 1

    def free(self, pages: list[int], *, rolling: bool = False) -> None:
        """Drop one reference to each page of a sequence, given in the order of its tokens."""
        # Last page first, so that of one prefix the tail is forgotten before the head: a head
        # without its tail is still of use, a tail without its head can never be found.
        for page in reversed(pages):
            assert self._references[page] > 0, f"page {page} freed twice"
            self._references[page] -= 1
            if self._references[page] > 0:
                if rolling:
                    self.cancel(1)
            elif page in self.prefix_cache:
                self.prefix_cache.rest(page)
            else:
                self._free.append(page)

    def forget(self, digest: bytes) -> None:
        """Make the page of a digest unfindable, if there is one."""
        page = self.prefix_cache.forget(digest)
        if page is not None:
            self._free.append(page)

    def forget_prefixes(self) -> None:
        """Empty the prefix cache; pages in use stay with their holders."""
        self._free.extend(self.prefix_cache.reset())

    def check_integrity(
        self, held: Iterable[int], *, num_reserved: int = 0, rolling: Iterable[int] = ()
    ) -> None:
        """Assert that the states partition the pages.

        held: every page once per holder. rolling: those of holders that share them so.
        num_reserved: pages promised to sequences.
        """
        self.prefix_cache.check_integrity()
        num_rolling = sum(count - 1 for count in Counter(rolling).values())
        assert self._num_reserved == num_reserved + num_rolling, "a promise is lost"
        assert self.num_free >= 0, "more was promised than there is"
        holders = Counter(held)
        free = set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        assert NULL_PAGE not in free, "the null page is free"
        assert NULL_PAGE not in holders, "the null page is held"
        for page in range(len(self._references)):
            assert self._references[page] == holders[page], f"page {page} has lost a reference"
            states = (holders[page] > 0, self.prefix_cache.is_idle(page), page in free)
            assert sum(states) == (page != NULL_PAGE), f"page {page} is in {sum(states)} states"
