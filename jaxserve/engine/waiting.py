"""The queue of waiting sequences, in order of precedence, and its limits."""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable

from jaxserve.api.request import Request
from jaxserve.api.sampling_params import MAX_N
from jaxserve.engine.sequence import Sequence, SequenceGroup, by_order
from jaxserve.errors import OverloadedError

MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 60.0
# Weight of the newest interval in the moving average of the time between two starts.
INTERVAL_WEIGHT = 0.1


class WaitingQueue:
    """Bounded queue of requests; their choices are scheduled one by one.

    One limit applies to requests without a choice that has run. A second limit applies to further
    choices (beyond the first of a request) that have never run, so that requests with many choices
    leave room for others. Preempted sequences are always accepted. A prefix-pending sequence, whose
    prefix another sequence is computing, is kept out of the order until the prefix is complete.
    """

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        # At least MAX_N, so that an empty queue has room for every valid request.
        self._max_further = max(max_requests, MAX_N)
        self._sequences: list[Sequence] = []  # sorted by order
        self._num_requests = 0
        self._num_further = 0
        self._prefix_pending: dict[bytes, list[Sequence]] = {}  # by the digest they wait for
        self._num_prefix_pending = 0
        self._last_start_s: float | None = None
        self._start_interval_s = 0.0

    def __len__(self) -> int:
        """Number of waiting sequences, including the prefix-pending ones."""
        return len(self._sequences) + self._num_prefix_pending

    @property
    def num_prefix_pending(self) -> int:
        """Number of prefix-pending sequences."""
        return self._num_prefix_pending

    @property
    def first(self) -> Sequence | None:
        """The next sequence to run, or None."""
        return self._sequences[0] if self._sequences else None

    def check_room(self, request: Request) -> None:
        """Raise OverloadedError if the queue has no room for a request."""
        if self._num_requests >= self._max_requests:
            complaint = f"{self._num_requests} requests are waiting"
        elif self._num_further + request.params.n - 1 > self._max_further:
            complaint = (
                f"{self._num_further} choices beyond the first of their requests are waiting,"
                f" and n={request.params.n} is too many more"
            )
        else:
            return
        # Time to drain the queue at the current rate.
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
        """Insert a sequence by its precedence."""
        insort(self._sequences, sequence, key=by_order)

    def next(self, count: int) -> list[Sequence]:
        """Return the sequences after the first one, at most `count`."""
        return self._sequences[1 : count + 1]

    def start(self, sequence: Sequence, now_s: float) -> None:
        """Remove a sequence that starts to run."""
        self._take(sequence)
        self._num_further -= _is_further(sequence)
        if not sequence.group.has_started:
            sequence.group.has_started = True
            self._num_requests -= 1
            if self._last_start_s is not None:
                interval_s = now_s - self._last_start_s
                self._start_interval_s += INTERVAL_WEIGHT * (interval_s - self._start_interval_s)
            # The time until the next start shows the rate only if a sequence is waiting.
            self._last_start_s = now_s if self._sequences else None

    def wait_for_prefix(self, sequence: Sequence, digest: bytes) -> None:
        """Take a sequence out of the order until the page of `digest` is computed."""
        self._take(sequence)
        sequence.awaited_digest = digest
        self._prefix_pending.setdefault(digest, []).append(sequence)
        self._num_prefix_pending += 1

    def release(self, digests: Iterable[bytes]) -> None:
        """Put the sequences that wait for these pages back into the order."""
        if not self._prefix_pending:
            return
        for digest in digests:
            for sequence in self._prefix_pending.pop(digest, ()):
                sequence.awaited_digest = None
                self._num_prefix_pending -= 1
                self.push(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence that ends while it waits."""
        self._num_further -= _is_further(sequence)
        digest = sequence.awaited_digest
        if digest is None:
            self._take(sequence)
            return
        pending = self._prefix_pending[digest]
        pending.remove(sequence)
        if not pending:
            del self._prefix_pending[digest]
        sequence.awaited_digest = None
        self._num_prefix_pending -= 1

    def close(self, group: SequenceGroup) -> None:
        """Stop counting a request that has ended."""
        if not group.has_started:
            self._num_requests -= 1

    def _take(self, sequence: Sequence) -> None:
        del self._sequences[bisect_left(self._sequences, sequence.order, key=by_order)]

    def check_integrity(
        self, groups: list[SequenceGroup], *, is_expected: Callable[[bytes], bool]
    ) -> None:
        """Assert that counts and order agree with `groups`, which are all unfinished requests."""
        orders = [sequence.order for sequence in self._sequences]
        assert orders == sorted(set(orders)), "the queue is out of order"
        assert self._num_requests == sum(not group.has_started for group in groups)
        pending = [
            sequence for sequences in self._prefix_pending.values() for sequence in sequences
        ]
        assert self._num_further == sum(map(_is_further, self._sequences + pending))
        assert len(pending) == self._num_prefix_pending
        for sequence in self._sequences + pending:
            assert sequence.slot is None, sequence
            assert not sequence.is_finished, sequence
        for digest, sequences in self._prefix_pending.items():
            assert is_expected(digest), "waits for a page that nobody computes"
            assert all(sequence.awaited_digest == digest for sequence in sequences)


def _is_further(sequence: Sequence) -> bool:
    """Whether a sequence is not the first choice of its request and has never run."""
    return sequence.index > 0 and sequence.num_cached_tokens is None
