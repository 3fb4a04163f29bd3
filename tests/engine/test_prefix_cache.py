"""The prefix cache: what a digest stands for, and who is forgotten first."""

from collections.abc import Sequence

import pytest

from jaxserve.engine.prefix_cache import PrefixCache, page_digests, private_root_digest, root_digest


def page_digest(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The digest of one page of these tokens."""
    (digest,) = page_digests(parent, token_ids, page_size=len(token_ids))
    return digest


def test_a_digest_depends_on_everything_before_its_page() -> None:
    root = root_digest("")
    after_one = page_digest(page_digest(root, [1, 2]), [5, 6])
    after_other = page_digest(page_digest(root, [1, 3]), [5, 6])
    assert after_one != after_other


def test_equal_prefixes_have_equal_digests_whatever_holds_the_tokens() -> None:
    root = root_digest("salt")
    assert page_digest(root, [1, 2]) == page_digest(root, (1, 2))


def test_where_a_token_ends_matters() -> None:
    root = root_digest("")
    assert page_digest(root, [1, 23]) != page_digest(root, [12, 3])
    assert page_digest(root, [1, 256]) != page_digest(root, [257, 0])


def test_salts_and_private_chains_never_meet() -> None:
    roots = [root_digest(""), root_digest("1"), private_root_digest(1), private_root_digest(2)]
    assert len(set(roots)) == len(roots)


def test_a_salt_may_be_any_string() -> None:
    assert root_digest("\ud800") != root_digest("\ud801")


def test_token_ids_up_to_32_bits_are_taken() -> None:
    root = root_digest("")
    assert page_digest(root, [2**32 - 1]) != page_digest(root, [2**32 - 2])


def test_find_stops_at_the_first_unknown_page() -> None:
    cache = PrefixCache()
    cache.register(b"a", 1)
    cache.register(b"c", 3)
    assert cache.find([b"a", b"b", b"c"]) == [1]


def test_of_equal_pages_the_first_stays_known() -> None:
    cache = PrefixCache()
    cache.register(b"a", 1)
    cache.register(b"a", 2)
    assert cache.find([b"a"]) == [1]
    assert 2 not in cache


def test_the_least_recently_used_idle_page_is_evicted() -> None:
    cache = PrefixCache()
    for page in (1, 2, 3):
        cache.register(bytes([page]), page)
        cache.mark_idle(page)
    cache.mark_used(1)
    cache.mark_idle(1)
    assert [cache.evict(), cache.evict(), cache.evict()] == [2, 3, 1]
    assert cache.find([b"\1"]) == []
    cache.check_integrity()


def test_a_forgotten_page_can_be_registered_anew() -> None:
    cache = PrefixCache()
    cache.register(b"a", 1)
    assert cache.unregister(b"a") is None
    assert cache.unregister(b"unknown") is None
    assert cache.find([b"a"]) == []
    cache.register(b"b", 1)
    assert cache.find([b"b"]) == [1]
    cache.check_integrity()


def test_forgetting_an_idle_page_returns_it() -> None:
    cache = PrefixCache()
    cache.register(b"a", 1)
    cache.mark_idle(1)
    assert cache.unregister(b"a") == 1
    assert cache.num_idle == 0


def test_registering_a_page_twice_is_a_bug() -> None:
    cache = PrefixCache()
    cache.register(b"a", 1)
    with pytest.raises(AssertionError, match="registered twice"):
        cache.register(b"b", 1)


def test_reset_returns_the_idle_pages_only() -> None:
    cache = PrefixCache()
    cache.register(b"a", 1)
    cache.register(b"b", 2)
    cache.mark_idle(2)
    assert cache.reset() == [2]
    assert cache.find([b"a"]) == []
    assert cache.num_idle == 0
