"""The sequences that run, each in a slot of the device's state."""

from bisect import bisect_left, insort

from jaxserve.api.plan import NULL_SLOT
from jaxserve.engine.sequence import Sequence, by_order


class RunningSet:
    """The sequences in slots, each list sorted by order and changed by these methods alone.

    prefilling: those that lack tokens of their prompt. decoding: those that lack one token. What
    leaves last in the order leaves a list at its end, so who goes through one from its start may
    let it.
    """

    def __init__(self, num_slots: int) -> None:
        self.prefilling: list[Sequence] = []
        self.decoding: list[Sequence] = []
        self._num_slots = num_slots
        self._free_slots = list(range(num_slots, NULL_SLOT, -1))

    def __len__(self) -> int:
        return len(self.prefilling) + len(self.decoding)

    @property
    def last(self) -> Sequence:
        """The sequence of lowest precedence; there must be one."""
        return max(self.prefilling[-1:] + self.decoding[-1:], key=by_order)

    def take_slot(self) -> int:
        """Return a free slot, for a sequence that is added next; there must be one."""
        return self._free_slots.pop()

    def add(self, sequence: Sequence) -> None:
        """Let a sequence run that has taken a slot."""
        insort(self.prefilling, sequence, key=by_order)

    def begin_decoding(self, sequence: Sequence) -> None:
        """Note that all known tokens of a sequence are planned."""
        _take(sequence, self.prefilling)
        insort(self.decoding, sequence, key=by_order)

    def begin_prefilling(self, sequence: Sequence) -> None:
        """Note that a sequence that was decoding lacks several tokens, all of them known."""
        _take(sequence, self.decoding)
        insort(self.prefilling, sequence, key=by_order)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, and its slot back."""
        assert sequence.slot is not None, sequence
        _take(sequence, self.decoding if sequence.is_decoding else self.prefilling)
        self._free_slots.append(sequence.slot)

    def check_integrity(self) -> None:
        """Assert that every sequence and every slot is in one place, and all in order."""
        slots = [*self._free_slots]
        slots += [sequence.slot for sequence in self.prefilling + self.decoding if sequence.slot]
        assert len(slots) == len(set(slots)) == self._num_slots, "a slot is lost or double"
        for sequences in (self.prefilling, self.decoding):
            orders = [sequence.order for sequence in sequences]
            assert orders == sorted(orders), "the running sequences are out of order"
        assert all(sequence.is_decoding for sequence in self.decoding), "a prompt decodes"
        assert not any(sequence.is_decoding for sequence in self.prefilling), "a decode is lost"


def _take(sequence: Sequence, sequences: list[Sequence]) -> None:
    del sequences[bisect_left(sequences, sequence.order, key=by_order)]
