"""Prefix cache: pages by the digest of their token prefix, so that equal prefixes are shared.

The digest of a full page covers all tokens before it:

    root = H(salt)     digest[i] = H(digest[i-1], tokens of page i)

So one lookup compares a whole prefix, as in vLLM's automatic prefix caching. Tokens themselves are
not compared: digests have 32 bytes, so that collisions cannot be constructed.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

DIGEST_BYTES = 32

# Precedence of a sequence: lower runs first. Unique.
type Order = tuple[int, int, int, int]


def root_digest(salt: str) -> bytes:
    """Return the root of the digests that all requests with this salt share."""
    # surrogatepass: JSON strings from clients can contain lone surrogates.
    salt_bytes = salt.encode("utf-8", "surrogatepass")
    return blake2b(salt_bytes, digest_size=DIGEST_BYTES, person=b"shared").digest()


def private_root_digest(serial: int) -> bytes:
    """Return the root of the digests that only the choices of request `serial` share."""
    return blake2b(str(serial).encode(), digest_size=DIGEST_BYTES, person=b"private").digest()


def page_digests(parent: bytes, token_ids: Sequence[int], *, page_size: int) -> list[bytes]:
    """Return the digests of the full pages of `token_ids` (each below 2**32) after `parent`."""
    # A fixed width per token keeps the encoding unambiguous.
    tokens = array("I", token_ids)
    encoded, num_bytes = tokens.tobytes(), tokens.itemsize * page_size
    digests: list[bytes] = []
    for stop in range(num_bytes, len(encoded) + 1, num_bytes):
        page = encoded[stop - num_bytes : stop]
        parent = blake2b(parent + page, digest_size=DIGEST_BYTES).digest()
        digests.append(parent)
    return digests


class PrefixCache:
    """Index from digests to the pages of one pool, with an LRU list of idle pages.

    A cached page is in use while it has references, which the allocator counts. Otherwise it is
    idle: it can still be found, but it may be evicted at any time, least recently used first.
    Groups that share a pool append different tags to their digests.
    """

    def __init__(self) -> None:
        self._pages: dict[bytes, int] = {}
        self._digests: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_idle(self) -> int:
        """Number of idle pages."""
        return len(self._idle)

    def __contains__(self, page: int) -> bool:
        """Whether the page is cached."""
        return page in self._digests

    def is_idle(self, page: int) -> bool:
        """Whether the page is cached and has no references."""
        return page in self._idle

    def get(self, digest: bytes) -> int | None:
        """Return the page of a digest, which may be idle, or None."""
        return self._pages.get(digest)

    def find(self, digests: Iterable[bytes]) -> list[int]:
        """Return the pages of the longest cached prefix of `digests`. They may be idle."""
        found: list[int] = []
        for digest in digests:
            page = self._pages.get(digest)
            if page is None:
                break
            found.append(page)
        return found

    def register(self, digest: bytes, page: int) -> None:
        """Add a page in use to the cache, unless the digest already has a page."""
        # Two sequences may compute the same page at once. Only the first is cached: sharing it
        # with the second sequence would save a page but change that sequence's page table.
        if digest not in self._pages:
            assert page not in self._digests, f"page {page} registered twice"
            self._pages[digest] = page
            self._digests[page] = digest

    def mark_idle(self, page: int) -> None:
        """Mark a cached page idle, because its last reference was dropped."""
        self._idle[page] = None

    def mark_used(self, page: int) -> None:
        """Mark an idle page as in use again."""
        del self._idle[page]

    def evict(self) -> int:
        """Evict the least recently used idle page and return it."""
        page, _ = self._idle.popitem(last=False)
        del self._pages[self._digests.pop(page)]
        return page

    def unregister(self, digest: bytes) -> int | None:
        """Remove the page of a digest from the cache; return it if it was idle."""
        page = self._pages.pop(digest, None)
        if page is None:
            return None
        del self._digests[page]
        return page if self._idle.pop(page, page) is None else None

    def reset(self) -> list[int]:
        """Clear the cache and return the pages that were idle."""
        idle = list(self._idle)
        self._pages.clear()
        self._digests.clear()
        self._idle.clear()
        return idle

    def check_integrity(self) -> None:
        """Assert that both directions of the index agree and that idle pages are cached."""
        assert {page: digest for digest, page in self._pages.items()} == self._digests
        assert self._idle.keys() <= self._digests.keys()


class PendingPrefixes:
    """Pages that running sequences are computing, by digest, so that others can wait for them.

    is_sparse: whether other sequences can start after some pages only.
    """

    def __init__(self, *, is_sparse: bool = False) -> None:
        self._is_sparse = is_sparse
        self._computed_by: dict[bytes, Order] = {}

    def __contains__(self, digest: bytes) -> bool:
        """Whether a running sequence computes the page."""
        return digest in self._computed_by

    def add(self, digests: Iterable[bytes], *, order: Order) -> None:
        """Record that the sequence of this order computes these pages, unless another does."""
        for digest in digests:
            self._computed_by.setdefault(digest, order)

    def find(self, digests: Iterable[bytes], *, order: Order) -> bytes | None:
        """Return the digest of the last page to wait for, or None.

        Only pages that sequences ahead of `order` compute are worth waiting for: those finish them
        at least as soon as a sequence of this order could. The search stops at a page that no
        sequence computes, unless is_sparse.
        """
        last = None
        for digest in digests:
            computed_by = self._computed_by.get(digest)
            if computed_by is None and self._is_sparse:
                continue
            if computed_by is None or computed_by > order:
                break
            last = digest
        return last

    def complete(self, digests: Iterable[bytes]) -> None:
        """Remove pages that have been computed."""
        if self._computed_by:
            for digest in digests:
                self._computed_by.pop(digest, None)

    def give_up(self, digests: Iterable[bytes], *, order: Order) -> None:
        """Remove the pages that the sequence of this order will not compute after all."""
        for digest in digests:
            if self._computed_by.get(digest) == order:
                del self._computed_by[digest]
