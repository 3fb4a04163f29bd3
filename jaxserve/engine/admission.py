"""Admission: which waiting sequences start to run, and from which cached prefix."""

from collections.abc import Callable

from jaxserve.engine.memory import KVMemory, PrefixHit
from jaxserve.engine.running import RunningSet
from jaxserve.engine.sequence import Sequence
from jaxserve.engine.waiting import WaitingQueue
from jaxserve.observability.stats import Totals

# Sequences that are considered, and that may start, before the first in the queue.
MAX_PASSED = 64


class Admission:
    """Moves sequences from the queue to the running set, as slots and pages allow."""

    def __init__(
        self,
        *,
        memory: KVMemory,
        waiting: WaitingQueue,
        running: RunningSet,
        totals: Totals,
        clock: Callable[[], float],
    ) -> None:
        self._memory = memory
        self._waiting = waiting
        self._running = running
        self._totals = totals
        self._clock = clock

    def admit(self, *, max_sequences: int, max_tokens: int) -> None:
        """Start sequences while slots and pages last, with no more tokens than a step computes."""
        num_tokens = 0
        while len(self._running) < max_sequences and num_tokens < max_tokens:
            sequence = self._waiting.first
            if sequence is None:
                return
            hit, awaited = self._memory.find(sequence)
            if awaited is not None:
                self._waiting.wait_for_prefix(sequence, awaited)
                continue
            if self._memory.evicts(sequence, hit):
                sequence, hit = self._nearest_to_cache(sequence, hit)
            if not self._memory.has_room(sequence, hit):
                return  # no sequence overtakes it, or a long prompt might wait forever
            self._waiting.start(sequence, self._clock())
            self._memory.enter(sequence, self._running.take_slot(), hit)
            self._running.add(sequence)
            num_tokens += sequence.length - sequence.num_scheduled
            if sequence.num_cached_tokens is None:
                sequence.num_cached_tokens = sequence.num_cached
                self._totals.prefix_queries += sequence.num_prompt
                self._totals.prefix_hits += sequence.num_cached
                self._totals.prefix_stateless += self._memory.num_stateless(hit)

    def _nearest_to_cache(self, first: Sequence, hit: PrefixHit) -> tuple[Sequence, PrefixHit]:
        """Return the sequence to start in place of the first in the queue, and its prefix hit.

        Starting the first would evict pages. So the sequence with the longest prefix hit starts,
        among the next few of the same priority, before its prefix is evicted. A sequence is passed
        over at most MAX_PASSED times.
        """
        if first.num_passed == MAX_PASSED:
            return first, hit
        best, most = first, hit
        for sequence in self._waiting.next(MAX_PASSED):
            if sequence.order[0] != first.order[0]:
                break
            if not self._memory.finds_more(sequence, most.num_pages):
                continue
            found, awaited = self._memory.find(sequence)
            if awaited is None and found.num_pages > most.num_pages:
                best, most = sequence, found
        if best is not first:
            first.num_passed += 1
        return best, most
