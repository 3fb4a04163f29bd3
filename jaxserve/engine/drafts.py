"""Speculative decoding: rows with draft tokens, which yield the accepted ones and one more.

A drafter proposes tokens that may follow a sequence. The scheduler calls it for every decoding
sequence whose sampled tokens have all been read from the device.
"""

from collections.abc import Callable

from jaxserve.engine.memory import KVMemory
from jaxserve.engine.plan_builder import PlanBuilder
from jaxserve.engine.sequence import Sequence

type Drafter = Callable[[Sequence], tuple[int, ...]]


class Drafts:
    """Plans draft tokens within the free pages and the limits; never preempts for them."""

    def __init__(self, drafter: Drafter, memory: KVMemory) -> None:
        self._drafter = drafter
        self._memory = memory

    def add_row(self, builder: PlanBuilder, sequence: Sequence, *, max_tokens: int) -> None:
        """Plan the next token of a sequence, and at most `max_tokens` draft tokens after it."""
        if sequence.length > sequence.num_known:
            return  # its last token was not read yet
        length = sequence.length
        drafts: tuple[int, ...] = ()
        if sequence.matcher is None and not builder.defers_all and self._memory.is_rewindable:
            # The row yields one token more than it has drafts.
            room = self._memory.max_stop(sequence) - length
            most = min(max_tokens, sequence.max_length - length - 1, room)
            drafts = self._drafter(sequence)[: max(most, 0)]
        if drafts and not self._memory.extend(sequence, 1 + len(drafts)):
            drafts = drafts[: sequence.capacity - length]
        if drafts:
            builder.add_drafts(sequence, drafts)
        else:
            builder.add_decode(sequence)

    def roll_back(self, sequence: Sequence, num_computed: int) -> None:
        """Roll a sequence back to its accepted tokens."""
        self._memory.fill(num_computed - sequence.num_scheduled)
        sequence.num_scheduled = num_computed
        sequence.length = num_computed + 1
        sequence.is_verifying = False
