"""Interface of cache groups: prefix lookup, and the pages of each running sequence.

A `GroupManager` looks up prefix cache hits for its group. A `Holding` is the set of pages that one
running sequence has in the group. The engine calls `extend` before a step that needs more pages,
`register` and `release` after a step is committed, and `leave` when the sequence stops running.
Changes to the page table are collected as `TableWrite`s and sent with the sequence's next row.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from jaxserve.api.caches import CacheGroup
from jaxserve.api.plan import TableWrite
from jaxserve.engine.pages import PageAllocator

# Larger than the length of any sequence.
UNBOUNDED = 1 << 40


class Holding(ABC):
    """Pages of one running sequence in one group.

    num_reserved: pages reserved for the sequence and not allocated yet.
    """

    # Whether references are `rolling`: see PageAllocator.share.
    is_rolling = False
    num_reserved: int

    @property
    @abstractmethod
    def pages(self) -> list[int]:
        """Pages that the sequence has a reference to."""

    @property
    def num_begun(self) -> int:
        """Pages of tokens that the sequence has, or has released."""
        return 0

    @abstractmethod
    def written(self, num_computed: int) -> list[int]:
        """Return the pages that steps after `num_computed` tokens may write."""

    @abstractmethod
    def num_missing(self, length: int) -> int:
        """Return the most pages that it will need in addition, to compute `length` tokens."""

    @abstractmethod
    def num_lacking(self, stop: int) -> int:
        """Return how many pages the tokens up to `stop` need beyond those reserved."""

    @abstractmethod
    def extend(self, start: int, stop: int, table: list[TableWrite]) -> int:
        """Allocate the pages for a step that computes the tokens [start, stop).

        Return the sequence length up to which single-token rows need no further call.
        """

    def max_stop(self, start: int) -> int:
        """Return the position at which a step that begins at `start` must stop."""
        del start
        return UNBOUNDED

    def leaves_start(self, page: int) -> bool:
        """Whether other sequences will be able to start after this page (an index)."""
        del page
        return True

    def plan_checkpoint(self, stop: int) -> None:
        """Let other sequences start after `stop` tokens, if only some positions allow that."""
        del stop

    @abstractmethod
    def register(self, digests: Sequence[bytes], first: int, stop: int) -> None:
        """Add the computed pages with indices [first, stop) to the prefix cache."""

    def release(self, num_computed: int, length: int, table: list[TableWrite]) -> int:
        """Free the pages that no step after `num_computed` tokens reads; return their number.

        length: known tokens. The pages that they still need stay reserved.
        """
        del num_computed, length, table
        return 0

    @abstractmethod
    def leave(self) -> None:
        """Free all pages and cancel all reservations."""


class GroupManager(ABC):
    """Prefix lookup and page allocation for one group, whose pages come from `pool`.

    tag: suffix of the group's digests, which separates groups that share a pool. num_begun: pages
    of tokens that running sequences have, or have released.
    """

    # Whether a page stores one entry per token.
    holds_tokens = True
    # Whether running sequences release pages.
    releases = True
    # Whether the last tokens of a sequence can be replaced by others.
    is_rewindable = True
    # Whether other sequences can start after some pages only.
    is_sparse = False

    def __init__(
        self, group: CacheGroup, pool: PageAllocator, *, tag: bytes, page_size: int
    ) -> None:
        self.pool = pool
        self.tag = tag
        self.page_size = page_size
        self.first_column = group.first_column
        self.num_begun = 0

    def pages_for(self, num_tokens: int) -> int:
        """Return how many pages `num_tokens` tokens need."""
        return -(-num_tokens // self.page_size)

    def page_of(self, digest: bytes) -> int | None:
        """Return the cached page of a digest, or None."""
        return self.pool.prefix_cache.get(digest + self.tag)

    def register(self, digest: bytes, page: int) -> None:
        """Add a page to the prefix cache."""
        self.pool.prefix_cache.register(digest + self.tag, page)

    def unregister(self, digests: Iterable[bytes]) -> None:
        """Remove these pages from the prefix cache."""
        for digest in digests:
            self.pool.unregister(digest + self.tag)

    @abstractmethod
    def num_wanted(self, length: int) -> int:
        """Return the most pages that a sequence of `length` tokens needs at once."""

    @abstractmethod
    def longest(self, digests: Sequence[bytes], limit: int) -> int:
        """Return the length in pages, at most `limit`, of the longest prefix cache hit."""

    @abstractmethod
    def shared(self, digests: Sequence[bytes], count: int) -> list[int]:
        """Return the cached pages that a sequence needs to start after `count` pages."""

    @abstractmethod
    def num_new(self, length: int, count: int, shared: list[int]) -> int:
        """Return how many pages to reserve for a sequence that starts after `count` pages."""

    def num_taken(self, shared: list[int]) -> int:
        """Return by how much sharing these pages lowers the number of free pages."""
        return self.pool.num_idle(shared)

    @abstractmethod
    def enter(
        self, length: int, count: int, shared: list[int], table: list[TableWrite], *, leaves: bool
    ) -> Holding:
        """Start a sequence after `count` pages, and reserve all pages that it will need.

        leaves: whether other sequences may start from the pages that it computes.
        """
