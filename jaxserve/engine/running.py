"""The running sequences, each of which has a slot of the device's state."""

from bisect import bisect_left, insort

from jaxserve.api.plan import NULL_SLOT
from jaxserve.engine.sequence import Sequence, by_order


class RunningSet:
    """Running sequences in two sorted lists, which only these methods change.

    prefilling: sequences with prompt tokens left to compute. decoding: sequences with one token
    left to compute. Both are sorted by `order`. It is safe to remove the last sequence of a list
    while iterating over the list.
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
        """Running sequence of lowest precedence. At least one sequence must run."""
        return max(self.prefilling[-1:] + self.decoding[-1:], key=by_order)

    def take_slot(self) -> int:
        """Take a free slot, of which there must be one, for the sequence to be added next."""
        return self._free_slots.pop()

    def add(self, sequence: Sequence) -> None:
        """Add a sequence that has taken a slot."""
        insort(self.prefilling, sequence, key=by_order)

    def begin_decoding(self, sequence: Sequence) -> None:
        """Move a sequence, all of whose known tokens are planned, to `decoding`."""
        _take(sequence, self.prefilling)
        insort(self.decoding, sequence, key=by_order)

    def begin_prefilling(self, sequence: Sequence) -> None:
        """Move a decoding sequence with several known tokens to compute to `prefilling`."""
        _take(sequence, self.decoding)
        insort(self.prefilling, sequence, key=by_order)

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence and free its slot."""
        assert sequence.slot is not None, sequence
        _take(sequence, self.decoding if sequence.is_decoding else self.prefilling)
        self._free_slots.append(sequence.slot)

    def check_integrity(self) -> None:
        """Assert that no slot is lost or used twice, and that both lists are right and sorted."""
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
