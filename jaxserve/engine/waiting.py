"""The sequences that wait to run, in order of precedence, and how many may do so."""

from bisect import bisect_left, insort
from operator import attrgetter

from jaxserve.engine.sequence import Sequence, SequenceGroup
from jaxserve.errors import OverloadedError

MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 60.0
# Weight of the newest interval in the running mean of the time between two starts.
INTERVAL_WEIGHT = 0.1

by_order = attrgetter("order")


class WaitingQueue:
    """A bounded queue of requests whose choices become runnable one by one.

    The bound counts requests that have never run; those that were preempted always find room.
    Choices of a request whose prompt fills pages are parked, outside the order, until their
    leader has computed those pages.
    """

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._sequences: list[Sequence] = []  # sorted by order
        self._num_requests = 0
        self._num_parked = 0
        self._last_start_s: float | None = None
        self._start_interval_s = 0.0

    def __len__(self) -> int:
        """Sequences waiting, parked ones included."""
        return len(self._sequences) + self._num_parked

    @property
    def first(self) -> Sequence | None:
        """The next sequence to run."""
        return self._sequences[0] if self._sequences else None

    def check_room(self) -> None:
        """Raise OverloadedError if no further request may wait."""
        if self._num_requests >= self._max_requests:
            # The time this queue takes to drain at the pace of late.
            drain_s = self._num_requests * self._start_interval_s
            raise OverloadedError(
                f"{self._num_requests} requests are waiting, and max_queued_requests is"
                f" {self._max_requests}: try again later",
                retry_after_s=min(max(drain_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S),
            )

    def add(self, group: SequenceGroup, *, parks: bool) -> None:
        """Queue a new request; with `parks`, all its choices but the first wait for that one."""
        self._num_requests += 1
        first, *others = group.sequences
        self.push(first)
        if parks:
            group.leader = first
            group.parked = others
            self._num_parked += len(others)
        else:
            for sequence in others:
                self.push(sequence)

    def push(self, sequence: Sequence) -> None:
        """Put a sequence where its precedence belongs."""
        insort(self._sequences, sequence, key=by_order)

    def start_first(self, now_s: float) -> None:
        """Take the first sequence out of the queue, because it runs now."""
        sequence = self._sequences.pop(0)
        if not sequence.group.has_started:
            sequence.group.has_started = True
            self._num_requests -= 1
            if self._last_start_s is not None:
                interval_s = now_s - self._last_start_s
                self._start_interval_s += INTERVAL_WEIGHT * (interval_s - self._start_interval_s)
            # The time until the next start says something of the pace only if one could follow.
            self._last_start_s = now_s if self._sequences else None

    def unpark(self, group: SequenceGroup) -> None:
        """Let the parked choices run: their leader has computed the pages to share."""
        leader, group.leader = group.leader, None
        assert leader is not None, "no leader computed the prompt"
        for sequence in group.parked:
            sequence.digests = leader.digests.copy()
            self.push(sequence)
        self._num_parked -= len(group.parked)
        group.parked = []

    def remove(self, sequence: Sequence) -> None:
        """Take out a sequence that ends while it waits."""
        if sequence in sequence.group.parked:
            sequence.group.parked.remove(sequence)
            self._num_parked -= 1
        else:
            del self._sequences[bisect_left(self._sequences, sequence.order, key=by_order)]

    def forget(self, sequence: Sequence) -> None:
        """Note that a sequence has ended: another leads in its place, its request may be over."""
        group = sequence.group
        if group.leader is sequence:
            group.leader = group.parked.pop(0) if group.parked else None
            if group.leader is not None:
                self._num_parked -= 1
                self.push(group.leader)
        if group.num_unfinished == 0 and not group.has_started:
            self._num_requests -= 1

    def check_integrity(self, groups: list[SequenceGroup]) -> None:
        """Assert that the counts and the order are right for all the requests there are."""
        orders = [sequence.order for sequence in self._sequences]
        assert orders == sorted(set(orders)), "the queue is out of order"
        assert self._num_requests == sum(not group.has_started for group in groups)
        assert self._num_parked == sum(len(group.parked) for group in groups)
        for sequence in self._sequences:
            assert sequence.slot is None, sequence
            assert not sequence.is_finished, sequence
        for group in groups:
            assert not group.parked or group.leader is not None, "parked without a leader"
