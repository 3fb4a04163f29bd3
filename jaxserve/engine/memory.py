"""Cache memory of sequences: allocation and sharing of pages in all cache groups."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from jaxserve.api.caches import CacheGroup, PagedGroup, StateGroup, WindowGroup
from jaxserve.api.engine_config import CacheConfig
from jaxserve.api.request import Request
from jaxserve.engine.cache_group import UNBOUNDED, GroupManager
from jaxserve.engine.paged_groups import PagedManager, WindowManager
from jaxserve.engine.pages import PageAllocator
from jaxserve.engine.prefix_cache import PendingPrefixes, PrefixCache
from jaxserve.engine.sequence import Sequence
from jaxserve.engine.state_group import StateManager
from jaxserve.errors import InvalidRequestError

# Manager class of each kind of group.
_MANAGERS: dict[type[CacheGroup], Callable[..., GroupManager]] = {
    PagedGroup: PagedManager,
    WindowGroup: WindowManager,
    StateGroup: StateManager,
}


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """Longest cached prefix of a sequence that all groups accept.

    num_pages: its length in pages. shared: for each group, the cached pages that the sequence
    needs to start after it. num_matched: its length in pages if a sequence could start from any
    page, without a state.
    """

    num_pages: int
    shared: tuple[list[int], ...]
    num_matched: int


class KVMemory:
    """Allocates pages to sequences in all cache groups, and shares prefixes between them.

    When a sequence enters, the pages for all its known tokens are reserved: running out of pages
    in the middle of a prompt would waste the computed part. They are allocated when needed.
    """

    def __init__(self, config: CacheConfig) -> None:
        self._page_size = config.page_size
        self._pools = [PageAllocator(number, PrefixCache()) for number in config.num_pages]
        self._pool_of = [group.pool for group in config.groups]
        self._groups = [
            _MANAGERS[type(group)](
                group,
                self._pools[group.pool],
                # The first group needs no tag.
                tag=number.to_bytes(2) if number else b"",
                page_size=config.page_size,
            )
            for number, group in enumerate(config.groups)
        ]
        self._token_pools = [
            pool
            for pool in self._pools
            if any(each.holds_tokens and each.pool is pool for each in self._groups)
        ]
        self._num_token_groups = sum(each.holds_tokens for each in self._groups)
        self._sparse = [group for group, each in enumerate(self._groups) if each.is_sparse]
        self._dense = [each for each in self._groups if not each.is_sparse]
        self._pending = PendingPrefixes(is_sparse=bool(self._sparse))
        self._longest = self._longest_sequence()
        self._members = [
            (pool, [group for group, of in enumerate(self._pool_of) if of == number])
            for number, pool in enumerate(self._pools)
        ]
        self._releasing = [group for group, each in enumerate(self._groups) if each.releases]
        # Tokens that running sequences have written, including the steps in flight.
        self._num_written = 0
        self._num_released = 0

    @property
    def is_rewindable(self) -> bool:
        """Whether the last tokens of a sequence can be replaced by others."""
        return all(group.is_rewindable for group in self._groups)

    @property
    def fullest(self) -> PageAllocator:
        """The pool with the largest share of its pages in use."""
        if len(self._pools) == 1:
            return self._pools[0]
        return max(self._pools, key=lambda pool: pool.num_used / pool.num_pages)

    @property
    def num_slots(self) -> int:
        """Number of token slots in pages in use."""
        return sum(pool.num_used for pool in self._token_pools) * self._page_size

    @property
    def num_empty(self) -> int:
        """Number of token slots in pages in use that no step, in flight or before, has written."""
        begun = sum([group.num_begun for group in self._groups])
        return begun * self._page_size - self._num_token_groups * self._num_written

    @property
    def num_released(self) -> int:
        """Number of pages that running sequences have released behind their windows so far."""
        return self._num_released

    def max_length(self, request: Request) -> int:
        """Return the length limit of a sequence in the KV cache.

        Raises InvalidRequestError if the prompt and max_tokens of the request exceed it.
        """
        num_prompt, max_tokens = len(request.prompt_ids), request.params.max_tokens
        if num_prompt + (max_tokens or 1) > self._longest:
            wanted = "" if max_tokens is None else f" and max_tokens={max_tokens}"
            num_pages = self._token_pools[0].num_pages
            raise InvalidRequestError(
                f"the KV cache has {num_pages} pages of {self._page_size} tokens, but the prompt"
                f" has {num_prompt} tokens{wanted}: one sequence can have at most {self._longest}",
                param="prompt" if num_prompt >= self._longest else "max_tokens",
            )
        return self._longest

    def _longest_sequence(self) -> int:
        """Return the most tokens that a sequence can have when it runs alone."""

        def fits(length: int) -> bool:
            wanted = Counter[int]()
            for pool, group in zip(self._pool_of, self._groups, strict=True):
                wanted[pool] += group.num_wanted(length)
            return all(count <= self._pools[pool].num_pages for pool, count in wanted.items())

        if fits(UNBOUNDED):
            return UNBOUNDED
        low, high = 0, UNBOUNDED
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        # The last token of a sequence is never computed, so it needs no slot in a page.
        return low + 1

    def find(self, sequence: Sequence) -> tuple[PrefixHit, bytes | None]:
        """Return the prefix cache hit of a waiting sequence, and the digest of a pending page.

        The digest is that of the last page worth waiting for, or None.
        """
        if not sequence.reads_cache:
            return self._hit(sequence, 0, 0), None
        # At least one token must be computed, to get logits to sample from.
        limit = (sequence.length - 1) // self._page_size
        sequence.extend_digests(limit, page_size=self._page_size)
        digests = sequence.digests
        matched = count = _longest(self._dense, digests, limit)
        if self._sparse:
            count = _longest(self._groups, digests, matched)
        missing = islice(digests, count, limit)
        hit = self._hit(sequence, count, matched if self._dense else count)
        return hit, self._pending.find(missing, order=sequence.order)

    def _hit(self, sequence: Sequence, count: int, matched: int) -> PrefixHit:
        shared = tuple([group.shared(sequence.digests, count) for group in self._groups])
        return PrefixHit(count, shared, matched)

    def num_stateless(self, hit: PrefixHit) -> int:
        """Return the cached tokens that a sequence cannot start after, for want of a state."""
        return (hit.num_matched - hit.num_pages) * self._page_size

    def finds_more(self, sequence: Sequence, num_pages: int) -> bool:
        """Whether `find` would probably return a hit of more than `num_pages` pages.

        Cheaper than `find`: looks up one page of one group.
        """
        if not sequence.reads_cache:
            return False
        limit = (sequence.length - 1) // self._page_size
        sequence.extend_digests(limit, page_size=self._page_size)
        # The tail of a prefix is evicted before its head, so one lookup is enough.
        digests = sequence.digests
        group = self._dense[0] if self._dense else self._groups[0]
        return num_pages < limit and group.page_of(digests[num_pages]) is not None

    def has_room(self, sequence: Sequence, hit: PrefixHit) -> bool:
        """Whether there are enough free pages for a sequence to start from a prefix hit."""
        taken = self._num_new(sequence, hit)
        for pool, group, shared in zip(self._pool_of, self._groups, hit.shared, strict=True):
            taken[pool] += group.num_taken(shared)
        return all(self._pools[pool].can_allocate(count) for pool, count in taken.items())

    def evicts(self, sequence: Sequence, hit: PrefixHit) -> bool:
        """Whether starting a sequence from a prefix hit would evict cached pages."""
        new = self._num_new(sequence, hit)
        return any(count > self._pools[pool].num_worthless for pool, count in new.items())

    def _num_new(self, sequence: Sequence, hit: PrefixHit) -> Counter[int]:
        """Return for each pool how many pages to reserve for a sequence that enters."""
        new = Counter[int]()
        for pool, group, shared in zip(self._pool_of, self._groups, hit.shared, strict=True):
            new[pool] += group.num_new(sequence.length, hit.num_pages, shared)
        return new

    def enter(self, sequence: Sequence, slot: int, hit: PrefixHit) -> None:
        """Start a sequence from a prefix hit, and reserve its pages."""
        leaves = sequence.root_digest is not None
        sequence.enter(slot, num_cached=hit.num_pages * self._page_size)
        sequence.num_registered = hit.num_pages
        sequence.holdings = [
            group.enter(sequence.length, hit.num_pages, shared, sequence.table, leaves=leaves)
            for group, shared in zip(self._groups, hit.shared, strict=True)
        ]
        self._num_written += sequence.num_cached
        if leaves:
            if hit.num_matched > hit.num_pages:
                # A third sequence that shares this prefix can start where the second leaves it.
                for group in self._sparse:
                    branch = hit.num_matched * self._page_size
                    sequence.holdings[group].plan_checkpoint(branch)
            num_full = sequence.length // self._page_size
            sequence.extend_digests(num_full, page_size=self._page_size)
            pages: Iterable[int] = range(hit.num_pages, num_full)
            for group in self._sparse:
                pages = [page for page in pages if sequence.holdings[group].leaves_start(page)]
            digests = [sequence.digests[page] for page in pages]
            self._pending.add(digests, order=sequence.order)

    def max_stop(self, sequence: Sequence) -> int:
        """Return the position at which the next step of a running sequence must stop."""
        start = sequence.num_scheduled
        return min([holding.max_stop(start) for holding in sequence.holdings])

    def extend(self, sequence: Sequence, num_tokens: int) -> bool:
        """Allocate the pages for the next `num_tokens` tokens of a sequence, up to `max_stop`.

        Return False, and change nothing, if there are too few free pages. Reserved pages are
        always available.
        """
        start = sequence.num_scheduled
        stop = start + num_tokens
        holdings, table = sequence.holdings, sequence.table
        for pool, members in self._members:
            num_lacking = 0
            for group in members:
                num_lacking += holdings[group].num_lacking(stop)
            if num_lacking > pool.num_free:
                return False
        sequence.capacity = UNBOUNDED
        for holding in holdings:
            capacity = holding.extend(start, stop, table)
            sequence.capacity = min(sequence.capacity, capacity)
        return True

    def promise(self, sequence: Sequence) -> bool:
        """Reserve pages for all known tokens of a running sequence; False if too few are free."""
        new = Counter[int]()
        for pool, holding in zip(self._pool_of, sequence.holdings, strict=True):
            new[pool] += max(holding.num_missing(sequence.length) - holding.num_reserved, 0)
        if not all(self._pools[pool].can_allocate(count) for pool, count in new.items()):
            return False
        for pool, holding in zip(self._pool_of, sequence.holdings, strict=True):
            num_new = max(holding.num_missing(sequence.length) - holding.num_reserved, 0)
            self._pools[pool].reserve(num_new)
            holding.num_reserved += num_new
        return True

    def fill(self, num_tokens: int) -> None:
        """Count the tokens that the next step writes."""
        self._num_written += num_tokens

    def commit(self, sequence: Sequence) -> Iterable[bytes]:
        """Cache the pages that became full, and release pages that no later token attends to.

        Return the digests of the pages that became full.
        """
        first, num_full = sequence.num_registered, sequence.num_computed // self._page_size
        sequence.num_registered = num_full
        digests: list[bytes] = []
        if sequence.root_digest is not None:
            sequence.extend_digests(num_full, page_size=self._page_size)
            digests = sequence.digests[first:num_full]
            for holding in sequence.holdings:
                holding.register(sequence.digests, first, num_full)
            self._pending.complete(digests)
        for group in self._releasing:
            self._num_released += sequence.holdings[group].release(
                sequence.num_computed, sequence.length, sequence.table
            )
        return digests

    def leave(self, sequence: Sequence) -> Iterable[bytes]:
        """Free all pages of a sequence; return the digests of the pages it leaves uncomputed."""
        self._num_written -= sequence.num_scheduled
        for holding in sequence.holdings:
            holding.leave()
        given_up = sequence.digests[sequence.num_registered :]
        self._pending.give_up(given_up, order=sequence.order)
        sequence.leave()
        return given_up

    def invalidate(self, sequence: Sequence) -> None:
        """Remove the pages of a sequence from the prefix cache."""
        for group in self._groups:
            group.unregister(sequence.digests[: sequence.num_registered])

    def reset_prefix_cache(self) -> None:
        """Clear the prefix cache; running sequences keep their pages."""
        for pool in self._pools:
            pool.reset_prefix_cache()

    def is_expected(self, digest: bytes) -> bool:
        """Whether a running sequence is computing the page of a digest."""
        return digest in self._pending

    def check_integrity(self, running: list[Sequence]) -> None:
        """Assert that every page is in one state, and that `running` hold the pages in use."""
        for pool, groups in self._members:
            own = [sequence.holdings[group] for sequence in running for group in groups]
            pool.check_integrity(
                [page for holding in own for page in holding.pages],
                num_reserved=sum(holding.num_reserved for holding in own),
                rolling=[page for holding in own if holding.is_rolling for page in holding.pages],
            )
            written: set[int] = set()
            for sequence in running:
                for group in groups:
                    # Each page that is not full yet must be written by one sequence only.
                    pages = sequence.holdings[group].written(sequence.num_computed)
                    assert written.isdisjoint(pages), f"two sequences write to one of {pages}"
                    written.update(pages)
        for group, manager in enumerate(self._groups):
            begun = sum(sequence.holdings[group].num_begun for sequence in running)
            assert manager.num_begun == begun, "pages are miscounted"
        num_written = sum(sequence.num_scheduled for sequence in running)
        assert self._num_written == num_written, "written tokens are miscounted"


def _longest(groups: list[GroupManager], digests: list[bytes], limit: int) -> int:
    """Return the length in pages, at most `limit`, of the longest prefix that all groups accept."""
    count, num_accepting, number = limit, 0, 0
    while num_accepting < len(groups):
        accepted = groups[number].longest(digests, count)
        num_accepting = num_accepting + 1 if accepted == count else 1
        count = accepted
        number = (number + 1) % len(groups)
    return count
