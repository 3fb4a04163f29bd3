"""Page allocation and reference counts."""

from collections import Counter
from collections.abc import Iterable

from jaxserve.api.plan import NULL_PAGE
from jaxserve.engine.prefix_cache import PrefixCache


class PageAllocator:
    """Allocator of the pages of one pool, with reference counts.

    Every page except the null page is in exactly one state:

        used    has one or more references
        idle    has no references, but the prefix cache can find it
        free    has no references and no cached contents

    Idle pages can be allocated too, after all free ones. `num_free` counts free and idle pages
    less the reserved ones. A reservation promises a number of pages without choosing them. All
    operations are O(1) per page.
    """

    def __init__(self, num_pages: int, prefix_cache: PrefixCache) -> None:
        self.prefix_cache = prefix_cache
        self._num_reserved = 0
        self._references = [0] * num_pages
        # A stack: the page freed last is allocated first. Low page numbers come first.
        self._free = [page for page in range(num_pages - 1, -1, -1) if page != NULL_PAGE]

    @property
    def num_pages(self) -> int:
        """Pages of the pool, without the null page."""
        return len(self._references) - 1

    @property
    def num_free(self) -> int:
        """Pages that can be allocated or reserved now."""
        return len(self._free) + self.prefix_cache.num_idle - self._num_reserved

    @property
    def num_worthless(self) -> int:
        """Pages that can be allocated or reserved without evicting a cached page; at least 0."""
        return max(len(self._free) - self._num_reserved, 0)

    @property
    def num_used(self) -> int:
        """Pages with at least one reference."""
        return self.num_pages - len(self._free) - self.prefix_cache.num_idle

    def can_allocate(self, num_pages: int) -> bool:
        """Whether `num_pages` pages can be allocated or reserved."""
        return num_pages <= self.num_free

    def num_idle(self, pages: Iterable[int]) -> int:
        """Return how many of the pages are idle, so that sharing them lowers `num_free`."""
        return sum(1 for page in pages if self.prefix_cache.is_idle(page))

    def allocate(self, num_pages: int) -> list[int]:
        """Allocate pages with one reference each; evict idle pages once none are free."""
        assert num_pages <= self.num_free, f"{num_pages} pages wanted, {self.num_free} free"
        taken: list[int] = []
        for _ in range(num_pages):
            page = self._free.pop() if self._free else self.prefix_cache.evict()
            self._references[page] = 1
            taken.append(page)
        return taken

    def reserve(self, num_pages: int) -> None:
        """Reserve pages, to be allocated later."""
        assert self.can_allocate(num_pages), f"{num_pages} pages wanted, {self.num_free} free"
        self._num_reserved += num_pages

    def cancel(self, num_pages: int) -> None:
        """Cancel a reservation: before allocating its pages, or because they are not needed."""
        assert self._num_reserved >= num_pages, "more was promised back than out"
        self._num_reserved -= num_pages

    def share(self, pages: Iterable[int], *, rolling: bool = False) -> None:
        """Add a reference to each of these pages of the prefix cache.

        rolling: whether to reserve a page for each one that already has references. Freeing a
        shared page returns no memory; the reservation makes up for it. `free` cancels it.
        """
        for page in pages:
            if self._references[page] == 0:
                self.prefix_cache.mark_used(page)
            elif rolling:
                self.reserve(1)
            self._references[page] += 1

    def free(self, pages: list[int], *, rolling: bool = False) -> None:
        """Drop one reference to each page of a sequence, given in the order of its tokens."""
        # Last page first, so that the tail of a prefix is evicted before its head: a head without
        # its tail is still useful, but a tail without its head can never be found.
        for page in reversed(pages):
            assert self._references[page] > 0, f"page {page} freed twice"
            self._references[page] -= 1
            if self._references[page] > 0:
                if rolling:
                    self.cancel(1)
            elif page in self.prefix_cache:
                self.prefix_cache.mark_idle(page)
            else:
                self._free.append(page)

    def unregister(self, digest: bytes) -> None:
        """Remove the page of a digest from the prefix cache, if it has one."""
        page = self.prefix_cache.unregister(digest)
        if page is not None:
            self._free.append(page)

    def reset_prefix_cache(self) -> None:
        """Clear the prefix cache; pages in use keep their references."""
        self._free.extend(self.prefix_cache.reset())

    def check_integrity(
        self, used: Iterable[int], *, num_reserved: int = 0, rolling: Iterable[int] = ()
    ) -> None:
        """Assert that the states partition the pages.

        used: every used page, once per reference. rolling: those with rolling references.
        num_reserved: pages reserved by sequences.
        """
        self.prefix_cache.check_integrity()
        num_rolling = sum(count - 1 for count in Counter(rolling).values())
        assert self._num_reserved == num_reserved + num_rolling, "a promise is lost"
        assert self.num_free >= 0, "more was promised than there is"
        references = Counter(used)
        free = set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        assert NULL_PAGE not in free, "the null page is free"
        assert NULL_PAGE not in references, "the null page is used"
        for page in range(len(self._references)):
            assert self._references[page] == references[page], f"page {page} has lost a reference"
            states = (references[page] > 0, self.prefix_cache.is_idle(page), page in free)
            assert sum(states) == (page != NULL_PAGE), f"page {page} is in {sum(states)} states"
