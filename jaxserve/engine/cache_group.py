"""The contract of cache groups: which pages a sequence holds in one, and where it can start from.

A `GroupManager` finds what the prefix cache has for its group. A `Holding` is what one running
sequence holds in it: `extend` before each step that needs more, `register` and `release` when steps
are committed, `leave` at the end. The rest of the engine calls these methods and knows no kinds of
groups. Changes to the page table are collected as `TableWrite`s and sent with the next row.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from jaxserve.api.caches import CacheGroup
from jaxserve.api.plan import TableWrite
from jaxserve.engine.pages import PageAllocator

# A number of tokens that no sequence has.
UNBOUNDED = 1 << 40


class Holding(ABC):
    """What a running sequence holds in one group.

    num_reserved: pages promised to it beyond those it has.
    """

    # Whether it shares pages `rolling`, see PageAllocator.
    is_rolling = False
    num_reserved: int

    @property
    @abstractmethod
    def held(self) -> list[int]:
        """The pages it has a reference to."""

    @property
    def num_begun(self) -> int:
        """Pages of tokens that it has, or has released."""
        return 0

    @abstractmethod
    def written(self, num_computed: int) -> list[int]:
        """Return the pages that steps after `num_computed` tokens may write."""

    @abstractmethod
    def num_missing(self, length: int) -> int:
        """Return how many pages it can yet need at once until `length` tokens are computed."""

    @abstractmethod
    def num_lacking(self, stop: int) -> int:
        """Return how many pages the tokens up to `stop` need now, beyond those promised."""

    @abstractmethod
    def extend(self, start: int, stop: int, table: list[TableWrite]) -> int:
        """Prepare for a step that computes the tokens [start, stop).

        Return the length up to which rows of single tokens need no further call.
        """

    def max_stop(self, start: int) -> int:
        """Return where a step that begins at `start` must stop."""
        del start
        return UNBOUNDED

    def leaves_start(self, page: int) -> bool:
        """Whether others will be able to start behind this page of its known tokens."""
        del page
        return True

    @abstractmethod
    def register(self, digests: Sequence[bytes], first: int, stop: int) -> None:
        """Make findable what it has of the computed pages [first, stop)."""

    def release(self, num_computed: int, length: int, table: list[TableWrite]) -> int:
        """Free the pages that no step after `num_computed` tokens reads, and count them.

        length: known tokens; it stays promised what those need.
        """
        del num_computed, length, table
        return 0

    @abstractmethod
    def leave(self) -> None:
        """Return all pages and promises."""


class GroupManager(ABC):
    """Finds and hands out the pages of one group, which come from `pool`.

    tag: tells its digests from those of other groups of the pool. num_begun: pages of tokens that
    running sequences have, or have released.
    """

    # Whether every token has room of its own in a page.
    holds_tokens = True
    # Whether running sequences release pages.
    releases = True
    # Whether a sequence can go back a few tokens and compute others in their place.
    is_rewindable = True
    # Whether sequences leave something to start from at some of their pages only.
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
        """Pages that hold `num_tokens` tokens."""
        return -(-num_tokens // self.page_size)

    def page_of(self, digest: bytes) -> int | None:
        """Return the page that the prefix cache has for a digest."""
        return self.pool.prefix_cache.get(digest + self.tag)

    def register(self, digest: bytes, page: int) -> None:
        """Make a page findable by the digest of a sequence."""
        self.pool.prefix_cache.register(digest + self.tag, page)

    def forget(self, digests: Iterable[bytes]) -> None:
        """Keep other sequences from starting from these pages."""
        for digest in digests:
            self.pool.forget(digest + self.tag)

    @abstractmethod
    def num_wanted(self, length: int) -> int:
        """Return how many pages a sequence of `length` tokens needs at once at most."""

    @abstractmethod
    def longest(self, digests: Sequence[bytes], limit: int) -> int:
        """Return the most pages, up to `limit`, behind which a sequence can start."""

    @abstractmethod
    def shared(self, digests: Sequence[bytes], count: int) -> list[int]:
        """Return the pages that a sequence needs to start behind its first `count`."""

    @abstractmethod
    def num_new(self, length: int, count: int, shared: list[int]) -> int:
        """Return how many pages to promise to a sequence that starts behind `count` pages."""

    def num_taken(self, shared: list[int]) -> int:
        """Return how many free pages it takes to share these."""
        return self.pool.num_idle(shared)

    @abstractmethod
    def enter(
        self, length: int, count: int, shared: list[int], table: list[TableWrite], *, leaves: bool
    ) -> Holding:
        """Let a sequence start behind `count` pages, with a promise of all that it will need.

        leaves: whether others may start from what it computes.
        """
