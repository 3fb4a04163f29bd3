"""The sequences that wait to run, in order of precedence, and how many may do so."""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable

from jaxserve.api.request import Request
from jaxserve.api.sampling_params import MAX_N
from jaxserve.engine.sequence import Sequence, SequenceGroup, by_order
from jaxserve.errors import OverloadedError

MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 60.0
# Weight of the newest interval in the running mean of the time between two starts.
INTERVAL_WEIGHT = 0.1


class WaitingQueue:
    """A bounded queue of requests whose choices run one by one.

    One bound counts requests of which nothing has run. Another counts the further choices (beyond
    the first) that have never run, so that requests for many choices leave room for others.
    Sequences that were preempted always find room.
    A sequence whose prefix another one computes is held, outside the order, until it is there.
    """

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        # Any request that is valid fits an empty queue.
        self._max_further = max(max_requests, MAX_N)
        self._sequences: list[Sequence] = []  # sorted by order
        self._num_requests = 0
        self._num_further = 0
        self._held: dict[bytes, list[Sequence]] = {}  # by the page they await
        self._num_held = 0
        self._last_start_s: float | None = None
        self._start_interval_s = 0.0

    def __len__(self) -> int:
        """Sequences waiting, those held included."""
        return len(self._sequences) + self._num_held

    @property
    def num_held(self) -> int:
        """Sequences waiting for a prefix that another one computes."""
        return self._num_held

    @property
    def first(self) -> Sequence | None:
        """The next sequence to run."""
        return self._sequences[0] if self._sequences else None

    def check_room(self, request: Request) -> None:
        """Raise OverloadedError if a request may not wait."""
        if self._num_requests >= self._max_requests:
            complaint = f"{self._num_requests} requests are waiting"
        elif self._num_further + request.params.n - 1 > self._max_further:
            complaint = (
                f"{self._num_further} choices beyond the first of their requests are waiting,"
                f" and n={request.params.n} is too many more"
            )
        else:
            return
        # The time this queue takes to drain at the current pace.
        drain_s = self._num_requests * self._start_interval_s
        raise OverloadedError(
            f"{complaint}; max_queued_requests is {self._max_requests}: try again later",
            retry_after_s=min(max(drain_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S),
        )

    def add(self, group: SequenceGroup) -> None:
        """Queue the choices of a new request."""
        self._num_requests += 1
        self._num_further += len(group.sequences) - 1
        for sequence in group.sequences:
            self.push(sequence)

    def push(self, sequence: Sequence) -> None:
        """Put a sequence where its precedence belongs."""
        insort(self._sequences, sequence, key=by_order)

    def next(self, count: int) -> list[Sequence]:
        """Return those that come after the first, at most `count`."""
        return self._sequences[1 : count + 1]

    def start(self, sequence: Sequence, now_s: float) -> None:
        """Take a sequence out of the order, because it runs now."""
        self._take(sequence)
        self._num_further -= _is_further(sequence)
        if not sequence.group.has_started:
            sequence.group.has_started = True
            self._num_requests -= 1
            if self._last_start_s is not None:
                interval_s = now_s - self._last_start_s
                self._start_interval_s += INTERVAL_WEIGHT * (interval_s - self._start_interval_s)
            # The time until the next start says something of the pace only if one could follow.
            self._last_start_s = now_s if self._sequences else None

    def hold(self, sequence: Sequence, digest: bytes) -> None:
        """Let a sequence wait for a page, and others pass."""
        self._take(sequence)
        sequence.awaited_digest = digest
        self._held.setdefault(digest, []).append(sequence)
        self._num_held += 1

    def release(self, digests: Iterable[bytes]) -> None:
        """Put those that wait for these pages back where their precedence belongs."""
        if not self._held:
            return
        for digest in digests:
            for sequence in self._held.pop(digest, ()):
                sequence.awaited_digest = None
                self._num_held -= 1
                self.push(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take out a sequence that ends while it waits."""
        self._num_further -= _is_further(sequence)
        digest = sequence.awaited_digest
        if digest is None:
            self._take(sequence)
            return
        held = self._held[digest]
        held.remove(sequence)
        if not held:
            del self._held[digest]
        sequence.awaited_digest = None
        self._num_held -= 1

    def forget(self, group: SequenceGroup) -> None:
        """Note that a request is over."""
        if not group.has_started:
            self._num_requests -= 1

    def _take(self, sequence: Sequence) -> None:
        del self._sequences[bisect_left(self._sequences, sequence.order, key=by_order)]

    def check_integrity(
        self, groups: list[SequenceGroup], *, is_expected: Callable[[bytes], bool]
    ) -> None:
        """Assert that the counts and the order are right for all the requests there are."""
        orders = [sequence.order for sequence in self._sequences]
        assert orders == sorted(set(orders)), "the queue is out of order"
        assert self._num_requests == sum(not group.has_started for group in groups)
        held = [sequence for sequences in self._held.values() for sequence in sequences]
        assert self._num_further == sum(map(_is_further, self._sequences + held))
        assert len(held) == self._num_held
        for sequence in self._sequences + held:
            assert sequence.slot is None, sequence
            assert not sequence.is_finished, sequence
        for digest, sequences in self._held.items():
            assert is_expected(digest), "held for a page that nobody computes"
            assert all(sequence.awaited_digest == digest for sequence in sequences)


def _is_further(sequence: Sequence) -> bool:
    """Whether it is not the first choice of its request and has never run."""
    return sequence.index > 0 and sequence.num_cached_tokens is None
