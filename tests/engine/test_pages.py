"""The page allocator: every page in one state, whatever happens."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jaxserve.engine.pages import PageAllocator
from jaxserve.engine.prefix_cache import PrefixCache


def make(num_pages: int = 5) -> tuple[PageAllocator, PrefixCache]:
    cache = PrefixCache()
    return PageAllocator(num_pages, cache), cache


def test_the_null_page_is_never_given_out() -> None:
    pages, _ = make(5)
    assert sorted(pages.allocate(4)) == [1, 2, 3, 4]
    assert not pages.can_allocate(1)


def test_a_freed_page_is_given_out_again() -> None:
    pages, _ = make(3)
    first = pages.allocate(2)
    pages.free(first)
    assert sorted(pages.allocate(2)) == sorted(first)


def test_a_page_freed_twice_is_a_bug() -> None:
    pages, _ = make()
    taken = pages.allocate(1)
    pages.free(taken)
    with pytest.raises(AssertionError, match="freed twice"):
        pages.free(taken)


def test_a_shared_page_stays_in_use_until_its_last_reference_is_dropped() -> None:
    pages, cache = make(3)
    taken = pages.allocate(1)
    cache.register(b"digest", taken[0])
    pages.share(taken)
    pages.free(taken)
    assert pages.num_free == 1
    pages.free(taken)
    assert pages.num_free == 2


def test_a_known_page_without_references_counts_as_free_and_can_be_taken_up_again() -> None:
    pages, cache = make(3)
    taken = pages.allocate(2)
    cache.register(b"digest", taken[0])
    pages.free(taken)
    assert pages.num_free == 2
    pages.share(cache.find([b"digest"]))
    assert pages.num_free == 1
    pages.check_integrity(used=taken[:1])


def test_worthless_pages_are_taken_before_known_ones() -> None:
    pages, cache = make(4)
    known, *others = pages.allocate(3)
    cache.register(b"digest", known)
    pages.free([known, *others])
    assert known not in pages.allocate(2)
    assert pages.allocate(1) == [known]
    assert cache.find([b"digest"]) == []


def test_the_tail_of_a_prefix_is_forgotten_before_its_head() -> None:
    pages, cache = make(4)
    taken = pages.allocate(3)
    for number, page in enumerate(taken):
        cache.register(bytes([number]), page)
    pages.free(taken)
    pages.allocate(1)
    assert cache.find([b"\0", b"\1", b"\2"]) == taken[:2]


def test_sharing_an_idle_page_takes_a_free_one() -> None:
    pages, cache = make(3)
    taken = pages.allocate(2)
    cache.register(b"digest", taken[0])
    pages.free(taken)
    assert pages.num_idle(taken) == 1
    pages.share(taken[:1])
    assert (pages.num_idle(taken), pages.num_free) == (0, 1)


def test_forgetting_prefixes_frees_idle_pages_and_leaves_used_ones() -> None:
    pages, cache = make(4)
    taken = pages.allocate(2)
    for number, page in enumerate(taken):
        cache.register(bytes([number]), page)
    pages.free(taken[:1])
    pages.reset_prefix_cache()
    assert cache.find([b"\0"]) == []
    assert cache.find([b"\1"]) == []
    pages.check_integrity(used=taken[1:])
    pages.free(taken[1:])
    assert pages.num_free == 3


class AllocatorMachine(RuleBasedStateMachine):
    """Random holders that allocate, register, share and free."""

    def __init__(self) -> None:
        super().__init__()
        self.pages, self.cache = make(9)
        self.holders: list[list[int]] = []
        self.num_digests = 0

    @rule(wanted=st.integers(1, 5))
    def allocate(self, wanted: int) -> None:
        if self.pages.can_allocate(wanted):
            self.holders.append(self.pages.allocate(wanted))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def register(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        page = data.draw(st.sampled_from(holder))
        if page not in self.cache:
            self.num_digests += 1
            self.cache.register(self.num_digests.to_bytes(4, "big"), page)

    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        digest = data.draw(st.integers(0, self.num_digests)).to_bytes(4, "big")
        found = self.cache.find([digest])
        if found:
            self.pages.share(found)
            self.holders.append(found)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        holder = data.draw(st.integers(0, len(self.holders) - 1))
        self.pages.free(self.holders.pop(holder))

    @rule()
    def reset_prefix_cache(self) -> None:
        self.pages.reset_prefix_cache()

    @invariant()
    def every_page_is_in_one_state(self) -> None:
        self.pages.check_integrity(page for holder in self.holders for page in holder)


TestAllocatorMachine = AllocatorMachine.TestCase
TestAllocatorMachine.settings = settings(max_examples=60, stateful_step_count=40)
