"""Which pages hold which token prefixes, so that equal prefixes are computed once.

A full page is known by a digest chained over everything before it:

    root = H(salt)     digest[i] = H(digest[i-1], tokens of page i)

so one look-up by digest compares a whole prefix (the scheme of vLLM's automatic prefix caching).
The digest is all that is compared: it is 32 bytes, out of reach of made-up collisions.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

DIGEST_BYTES = 32

# The precedence of a sequence, lower first; unique.
type Order = tuple[int, int, int, int]


def root_digest(salt: str) -> bytes:
    """The start of the chain for prefixes shared between all requests of this salt."""
    # surrogatepass: a salt comes from outside, and JSON can smuggle lone surrogates into a string.
    salt_bytes = salt.encode("utf-8", "surrogatepass")
    return blake2b(salt_bytes, digest_size=DIGEST_BYTES, person=b"shared").digest()


def private_root_digest(serial: int) -> bytes:
    """The start of a chain that only the choices of one request (its `serial`) share."""
    return blake2b(str(serial).encode(), digest_size=DIGEST_BYTES, person=b"private").digest()


def page_digests(parent: bytes, token_ids: Sequence[int], *, page_size: int) -> list[bytes]:
    """Return the digests of the full pages of `token_ids` (each below 2**32) after `parent`."""
    # A fixed width per token: otherwise (1, 23) and (12, 3) could be one page.
    tokens = array("I", token_ids)
    encoded, num_bytes = tokens.tobytes(), tokens.itemsize * page_size
    digests: list[bytes] = []
    for stop in range(num_bytes, len(encoded) + 1, num_bytes):
        page = encoded[stop - num_bytes : stop]
        parent = blake2b(parent + page, digest_size=DIGEST_BYTES).digest()
        digests.append(parent)
    return digests


class PrefixCache:
    """Index from digests to the pages of one pool, with the idle pages in order of eviction.

    A known page is either in use (someone holds a reference; the allocator counts them) or idle:
    its contents can still be found, but its memory may be taken for something else at any time,
    least recently used first. Where groups share a pool, each appends its tag to its digests.
    """

    def __init__(self) -> None:
        self._pages: dict[bytes, int] = {}
        self._digests: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_idle(self) -> int:
        """Known pages that nobody uses."""
        return len(self._idle)

    def __contains__(self, page: int) -> bool:
        """Whether the page's contents can be found."""
        return page in self._digests

    def is_idle(self, page: int) -> bool:
        """Whether the page is known and nobody uses it."""
        return page in self._idle

    def get(self, digest: bytes) -> int | None:
        """Return the page of a digest, which may be idle; None if there is none."""
        return self._pages.get(digest)

    def find(self, digests: Iterable[bytes]) -> list[int]:
        """Return the pages of the longest known prefix of `digests`. They may be idle."""
        found: list[int] = []
        for digest in digests:
            page = self._pages.get(digest)
            if page is None:
                break
            found.append(page)
        return found

    def register(self, digest: bytes, page: int) -> None:
        """Make a page in use findable, unless an equal one is already known."""
        # Two sequences may compute the same page at once. The first stays the known one; moving
        # the second's readers over would gain one page and cost a change of its page table.
        if digest not in self._pages:
            assert page not in self._digests, f"page {page} registered twice"
            self._pages[digest] = page
            self._digests[page] = digest

    def rest(self, page: int) -> None:
        """Note that nobody uses this known page any more."""
        self._idle[page] = None

    def wake(self, page: int) -> None:
        """Note that an idle page is in use again."""
        del self._idle[page]

    def evict(self) -> int:
        """Forget the least recently used idle page and return it."""
        page, _ = self._idle.popitem(last=False)
        del self._pages[self._digests.pop(page)]
        return page

    def forget(self, digest: bytes) -> int | None:
        """Make the page of a digest unfindable; return it if it was idle."""
        page = self._pages.pop(digest, None)
        if page is None:
            return None
        del self._digests[page]
        return page if self._idle.pop(page, page) is None else None

    def reset(self) -> list[int]:
        """Forget everything and return the pages that were idle."""
        idle = list(self._idle)
        self._pages.clear()
        self._digests.clear()
        self._idle.clear()
        return idle

    def check_integrity(self) -> None:
        """Assert that both directions of the index agree and idle pages are known."""
        assert {page: digest for digest, page in self._pages.items()} == self._digests
        assert self._idle.keys() <= self._digests.keys()


class PendingPrefixes:
    """Prefixes that running sequences are computing, so that others can wait for them.

    is_sparse: whether a sequence leaves something to start from at some of its pages only.
    """

    def __init__(self, *, is_sparse: bool = False) -> None:
        self._is_sparse = is_sparse
        self._computed_by: dict[bytes, Order] = {}

    def __contains__(self, digest: bytes) -> bool:
        """Whether a sequence computes the page."""
        return digest in self._computed_by

    def add(self, digests: Iterable[bytes], *, order: Order) -> None:
        """Note that the sequence of this order computes these pages, unless another does."""
        for digest in digests:
            self._computed_by.setdefault(digest, order)

    def find(self, digests: Iterable[bytes], *, order: Order) -> bytes | None:
        """Return the last of the first `digests` that sequences ahead of `order` compute.

        A sequence of higher precedence computes it at least as soon as one of this order could.
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
        """Note that pages have been computed."""
        if self._computed_by:
            for digest in digests:
                self._computed_by.pop(digest, None)

    def give_up(self, digests: Iterable[bytes], *, order: Order) -> None:
        """Note that the sequence of this order does not compute these pages after all."""
        for digest in digests:
            if self._computed_by.get(digest) == order:
                del self._computed_by[digest]
