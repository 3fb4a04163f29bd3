"""The cache memory of sequences: which pages each has, and which it can share."""

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

# The one place that tells kinds of groups apart.
_MANAGERS: dict[type[CacheGroup], Callable[..., GroupManager]] = {
    PagedGroup: PagedManager,
    WindowGroup: WindowManager,
    StateGroup: StateManager,
}


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """The longest prefix of a sequence that all groups accept.

    shared: by group, the pages that the sequence needs of it.
    """

    num_pages: int
    shared: tuple[list[int], ...]


class KVMemory:
    """Gives sequences the pages of all cache groups as they grow, and keeps prefixes findable.

    A sequence enters with a promise of the pages for all its known tokens, since to run out of
    them half-way through a prompt would waste what was computed. It takes them as it needs them.
    """

    def __init__(self, config: CacheConfig) -> None:
        self._page_size = config.page_size
        self._pools = [PageAllocator(number, PrefixCache()) for number in config.num_pages]
        self._pool_of = [group.pool for group in config.groups]
        self._groups = [
            _MANAGERS[type(group)](
                group,
                self._pools[group.pool],
                # A single group needs none.
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
        self._pending = PendingPrefixes(is_sparse=bool(self._sparse))
        self._longest = self._longest_sequence()
        self._members = [
            (pool, [group for group, of in enumerate(self._pool_of) if of == number])
            for number, pool in enumerate(self._pools)
        ]
        self._releasing = [group for group, each in enumerate(self._groups) if each.releases]
        # Tokens that running sequences have written, or will have after the steps in flight.
        self._num_written = 0
        self._num_released = 0

    @property
    def is_rewindable(self) -> bool:
        """Whether a sequence can go back a few tokens and compute others in their place."""
        return all(group.is_rewindable for group in self._groups)

    @property
    def num_pages(self) -> int:
        """Pages of the pool that is fullest."""
        return self._fullest.num_pages

    @property
    def num_used(self) -> int:
        """Pages of that pool that sequences have."""
        return self._fullest.num_held

    @property
    def num_slots(self) -> int:
        """Tokens for which the pages of sequences have room."""
        return sum(pool.num_held for pool in self._token_pools) * self._page_size

    @property
    def num_empty(self) -> int:
        """Token slots of used pages in which nothing is written, nor by a step in flight."""
        begun = sum([group.num_begun for group in self._groups])
        return begun * self._page_size - self._num_token_groups * self._num_written

    @property
    def num_released(self) -> int:
        """Pages that running sequences have released so far because no later token sees them."""
        return self._num_released

    @property
    def _fullest(self) -> PageAllocator:
        return max(self._pools, key=lambda pool: pool.num_held / pool.num_pages)

    def max_length(self, request: Request) -> int:
        """Return how long a sequence can be; raises InvalidRequestError if the request's cannot."""
        num_prompt, max_tokens = len(request.prompt_ids), request.params.max_tokens
        if num_prompt + (max_tokens or 1) > self._longest:
            wanted = "" if max_tokens is None else f" and max_tokens={max_tokens}"
            num_pages = self._pools[0].num_pages
            raise InvalidRequestError(
                f"the KV cache has {num_pages} pages of {self._page_size} tokens, but the prompt"
                f" has {num_prompt} tokens{wanted}: one sequence can have at most {self._longest}",
                param="prompt" if num_prompt >= self._longest else "max_tokens",
            )
        return self._longest

    def _longest_sequence(self) -> int:
        """Return how many tokens a sequence can have that has all pools to itself."""

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
        # The token that ends a sequence is never computed, so it needs no place in a page.
        return low + 1

    def find(self, sequence: Sequence) -> tuple[PrefixHit, bytes | None]:
        """Return what a waiting sequence can start from, and the digest of the page to wait for."""
        if not sequence.reads_cache:
            return self._hit(sequence, 0), None
        # At least one token must be computed, to have logits to sample from.
        limit = (sequence.length - 1) // self._page_size
        sequence.extend_digests(limit, page_size=self._page_size)
        digests = sequence.digests
        count, num_accepting, number = limit, 0, 0
        while num_accepting < len(self._groups):
            accepted = self._groups[number].longest(digests, count)
            num_accepting = num_accepting + 1 if accepted == count else 1
            count = accepted
            number = (number + 1) % len(self._groups)
        missing = islice(digests, count, limit)
        return self._hit(sequence, count), self._pending.find(missing, order=sequence.order)

    def _hit(self, sequence: Sequence, count: int) -> PrefixHit:
        shared = tuple([group.shared(sequence.digests, count) for group in self._groups])
        return PrefixHit(count, shared)

    def finds_more(self, sequence: Sequence, num_pages: int) -> bool:
        """Whether a waiting sequence probably finds more than so many pages, which `find` tells."""
        if not sequence.reads_cache:
            return False
        limit = (sequence.length - 1) // self._page_size
        sequence.extend_digests(limit, page_size=self._page_size)
        # The tail of a prefix is evicted before its head.
        digests = sequence.digests
        return num_pages < limit and self._groups[0].page_of(digests[num_pages]) is not None

    def has_room(self, sequence: Sequence, hit: PrefixHit) -> bool:
        """Whether a sequence can enter that starts from a prefix hit."""
        taken = self._num_new(sequence, hit)
        for pool, group, shared in zip(self._pool_of, self._groups, hit.shared, strict=True):
            taken[pool] += group.num_taken(shared)
        return all(self._pools[pool].can_allocate(count) for pool, count in taken.items())

    def evicts(self, sequence: Sequence, hit: PrefixHit) -> bool:
        """Whether cached pages would be evicted for such a sequence."""
        new = self._num_new(sequence, hit)
        return any(count > self._pools[pool].num_worthless for pool, count in new.items())

    def _num_new(self, sequence: Sequence, hit: PrefixHit) -> Counter[int]:
        """Return by pool how many pages to promise to a sequence that enters."""
        new = Counter[int]()
        for pool, group, shared in zip(self._pool_of, self._groups, hit.shared, strict=True):
            new[pool] += group.num_new(sequence.length, hit.num_pages, shared)
        return new

    def enter(self, sequence: Sequence, slot: int, hit: PrefixHit) -> None:
        """Let a sequence run from a prefix hit on."""
        leaves = sequence.root_digest is not None
        sequence.enter(slot, num_cached=hit.num_pages * self._page_size)
        sequence.num_registered = hit.num_pages
        sequence.holdings = [
            group.enter(sequence.length, hit.num_pages, shared, sequence.table, leaves=leaves)
            for group, shared in zip(self._groups, hit.shared, strict=True)
        ]
        self._num_written += sequence.num_cached
        if leaves:
            num_full = sequence.length // self._page_size
            sequence.extend_digests(num_full, page_size=self._page_size)
            pages: Iterable[int] = range(hit.num_pages, num_full)
            for group in self._sparse:
                pages = [page for page in pages if sequence.holdings[group].leaves_start(page)]
            digests = [sequence.digests[page] for page in pages]
            self._pending.add(digests, order=sequence.order)

    def max_stop(self, sequence: Sequence) -> int:
        """Return where the next step of a running sequence must stop."""
        start = sequence.num_scheduled
        return min([holding.max_stop(start) for holding in sequence.holdings])

    def extend(self, sequence: Sequence, num_tokens: int) -> bool:
        """Prepare for a step that computes the next tokens of a sequence, up to `max_stop`.

        Return False, and do nothing, if there is not a page for each. Promised pages there are.
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
        """Promise a running sequence the pages for all its known tokens; False if there are not."""
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
        """Note that the next step writes so many tokens."""
        self._num_written += num_tokens

    def commit(self, sequence: Sequence) -> Iterable[bytes]:
        """Make the pages findable that are full, and release those that no later token sees.

        Return the digests of the full pages.
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
        """Take everything back; return the digests of pages that it will not compute after all."""
        self._num_written -= sequence.num_scheduled
        for holding in sequence.holdings:
            holding.leave()
        given_up = sequence.digests[sequence.num_registered :]
        self._pending.give_up(given_up, order=sequence.order)
        sequence.leave()
        return given_up

    def distrust(self, sequence: Sequence) -> None:
        """Keep other sequences from starting from what this one has computed."""
        for group in self._groups:
            group.forget(sequence.digests[: sequence.num_registered])

    def forget_prefixes(self) -> None:
        """Forget all cached prefixes; sequences that run keep their pages."""
        for pool in self._pools:
            pool.forget_prefixes()

    def is_expected(self, digest: bytes) -> bool:
        """Whether a running sequence computes the page."""
        return digest in self._pending

    def check_integrity(self, running: list[Sequence]) -> None:
        """Assert that every page is in one state, and what is held by these sequences."""
        for pool, groups in self._members:
            own = [sequence.holdings[group] for sequence in running for group in groups]
            pool.check_integrity(
                [page for holding in own for page in holding.held],
                num_reserved=sum(holding.num_reserved for holding in own),
                rolling=[page for holding in own if holding.is_rolling for page in holding.held],
            )
            written: set[int] = set()
            for sequence in running:
                for group in groups:
                    # Pages that are not full yet are written by one sequence alone.
                    pages = sequence.holdings[group].written(sequence.num_computed)
                    assert written.isdisjoint(pages), f"two sequences write to one of {pages}"
                    written.update(pages)
        for group, manager in enumerate(self._groups):
            begun = sum(sequence.holdings[group].num_begun for sequence in running)
            assert manager.num_begun == begun, "pages are miscounted"
        num_written = sum(sequence.num_scheduled for sequence in running)
        assert self._num_written == num_written, "written tokens are miscounted"
