"""The KV memory of sequences: which pages each has, and which it can share."""

from collections.abc import Iterable
from itertools import islice

from jaxserve.api.engine_config import CacheConfig
from jaxserve.api.request import Request
from jaxserve.engine.pages import PageAllocator
from jaxserve.engine.prefix_cache import PrefixCache
from jaxserve.engine.sequence import Sequence
from jaxserve.errors import InvalidRequestError


class KVMemory:
    """Gives pages to sequences as they grow, and keeps what they have computed findable.

    A sequence enters with a promise of the pages for all its known tokens, since to run out of
    them half-way through a prompt would waste what was computed. It takes them as it needs them.
    """

    def __init__(self, config: CacheConfig) -> None:
        self._page_size = config.page_size
        self._pages_for = config.pages_for
        self._prefixes = PrefixCache()
        self._pages = PageAllocator(config.num_pages, self._prefixes)
        self._num_empty = 0

    @property
    def num_pages(self) -> int:
        """Pages there are."""
        return self._pages.num_pages

    @property
    def num_used(self) -> int:
        """Pages that sequences have."""
        return self._pages.num_held

    @property
    def num_empty(self) -> int:
        """Token slots of used pages in which nothing is written, nor by a step under way."""
        return self._num_empty

    def max_length(self, request: Request) -> int:
        """Return how long a sequence can be; raises InvalidRequestError if the request's cannot."""
        num_pages, page_size = self._pages.num_pages, self._page_size
        # The token that ends a sequence is never computed, so it needs no place in a page.
        pool_length = num_pages * page_size + 1
        num_prompt, max_tokens = len(request.prompt_ids), request.params.max_tokens
        if num_prompt + (max_tokens or 1) > pool_length:
            wanted = "" if max_tokens is None else f" and max_tokens={max_tokens}"
            raise InvalidRequestError(
                f"the KV cache has {num_pages} pages of {page_size} tokens, but the prompt has"
                f" {num_prompt} tokens{wanted}: one sequence can have at most {pool_length}",
                param="prompt" if num_prompt >= pool_length else "max_tokens",
            )
        return pool_length

    def find(self, sequence: Sequence) -> tuple[list[int], bytes | None]:
        """Return the pages a waiting sequence can start from, and the page it had better await."""
        if not sequence.reads_cache:
            return [], None
        # At least one token must be computed, to have logits to sample from.
        limit = (sequence.length - 1) // self._page_size
        sequence.extend_digests(limit, page_size=self._page_size)
        shared = self._prefixes.find(islice(sequence.digests, limit))
        missing = islice(sequence.digests, len(shared), limit)
        return shared, self._prefixes.find_expected(missing, order=sequence.order)

    def finds_more(self, sequence: Sequence, num_pages: int) -> bool:
        """Whether a waiting sequence probably finds more than so many pages, which `find` tells."""
        if not sequence.reads_cache:
            return False
        limit = (sequence.length - 1) // self._page_size
        sequence.extend_digests(limit, page_size=self._page_size)
        # Of a prefix, what comes last is forgotten first.
        return num_pages < limit and self._prefixes.knows(sequence.digests[num_pages])

    def has_room(self, sequence: Sequence, shared: list[int]) -> bool:
        """Whether a sequence can enter that starts from `shared` pages."""
        num_new = self._pages_for(sequence.length) - len(shared)
        return self._pages.can_allocate(num_new, sharing=shared)

    def forgets(self, sequence: Sequence, shared: list[int]) -> bool:
        """Whether cached pages would be forgotten for the sake of such a sequence."""
        return self._pages_for(sequence.length) - len(shared) > self._pages.num_worthless

    def enter(self, sequence: Sequence, slot: int, shared: list[int]) -> None:
        """Let a sequence run from `shared` pages on."""
        num_new = self._pages_for(sequence.length) - len(shared)
        self._pages.share(shared)
        self._pages.reserve(num_new)
        sequence.enter(slot, shared, num_reserved=num_new, page_size=self._page_size)
        if sequence.root_digest is not None:
            num_full = sequence.length // self._page_size
            sequence.extend_digests(num_full, page_size=self._page_size)
            expected = islice(sequence.digests, len(shared), num_full)
            self._prefixes.expect(expected, order=sequence.order)

    def extend(self, sequence: Sequence, num_tokens: int) -> None:
        """Give a sequence the pages it was promised for its next `num_tokens` tokens."""
        stop = sequence.num_scheduled + num_tokens
        num_new = self._pages_for(stop) - len(sequence.pages)
        self._pages.cancel(num_new)
        sequence.num_reserved -= num_new
        sequence.pages += self._pages.allocate(num_new)
        self._num_empty += num_new * self._page_size

    def promise(self, sequence: Sequence) -> bool:
        """Promise a running sequence the pages for all its known tokens; False if there are not."""
        num_known = self._pages_for(sequence.length)
        num_new = num_known - len(sequence.pages) - sequence.num_reserved
        if num_new > 0:
            if not self._pages.can_allocate(num_new):
                return False
            self._pages.reserve(num_new)
            sequence.num_reserved += num_new
        return True

    def add_page(self, sequence: Sequence) -> bool:
        """Give a sequence one page beyond its promise; False if there is none."""
        if not self._pages.can_allocate(1):
            return False
        sequence.pages += self._pages.allocate(1)
        self._num_empty += self._page_size
        return True

    def fill(self, num_tokens: int) -> None:
        """Note that the next step writes so many tokens."""
        self._num_empty -= num_tokens

    def register(self, sequence: Sequence) -> Iterable[bytes]:
        """Make the pages findable that have become full; return their digests."""
        first, num_full = sequence.num_registered, sequence.num_computed // self._page_size
        sequence.num_registered = num_full
        if sequence.root_digest is None:
            return ()
        sequence.extend_digests(num_full, page_size=self._page_size)
        for page in range(first, num_full):
            self._prefixes.register(sequence.digests[page], sequence.pages[page])
        return sequence.digests[first:num_full]

    def leave(self, sequence: Sequence) -> Iterable[bytes]:
        """Take everything back; return the digests of pages that it will not compute after all."""
        self._num_empty -= len(sequence.pages) * self._page_size - sequence.num_scheduled
        self._pages.free(sequence.pages)
        self._pages.cancel(sequence.num_reserved)
        given_up = sequence.digests[sequence.num_registered :]
        self._prefixes.give_up(given_up, order=sequence.order)
        sequence.leave()
        return given_up

    def distrust(self, sequence: Sequence) -> None:
        """See to it that nobody else starts from the pages of a sequence."""
        self._prefixes.forget(sequence.pages)

    def forget_prefixes(self) -> None:
        """Forget all cached prefixes; sequences that run keep their pages."""
        self._pages.forget_prefixes()

    def is_expected(self, digest: bytes) -> bool:
        """Whether a running sequence computes the page."""
        return self._prefixes.is_expected(digest)

    def check_integrity(self, running: list[Sequence]) -> None:
        """Assert that every page is in one state, and what is held by these sequences."""
        self._pages.check_integrity(
            (page for sequence in running for page in sequence.pages),
            num_reserved=sum(sequence.num_reserved for sequence in running),
        )
        num_empty = 0
        written: set[int] = set()
        for sequence in running:
            num_empty += len(sequence.pages) * self._page_size - sequence.num_scheduled
            # Pages that are not full yet are written by one sequence alone.
            own = sequence.pages[sequence.num_computed // self._page_size :]
            assert written.isdisjoint(own), f"two sequences write to one of pages {own}"
            written.update(own)
        assert self._num_empty == num_empty, "written tokens are miscounted"
