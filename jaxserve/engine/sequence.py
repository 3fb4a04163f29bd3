"""A sequence: one choice of one request, from its arrival to its last token."""

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from jaxserve.engine.prefix_cache import page_digest
from jaxserve.request import FinishReason, PositionLogprobs, Request, RequestMetrics


@dataclass(slots=True, eq=False, kw_only=True)
class SequenceGroup:
    """The choices of one request, which share its prompt.

    leader: the choice that computes the prompt. parked: choices that wait until the leader has
    done so, to share its pages instead of computing them again. has_started: whether any choice
    has ever run.
    """

    request: Request
    sequences: list["Sequence"] = field(default_factory=list["Sequence"])
    leader: "Sequence | None" = None
    parked: list["Sequence"] = field(default_factory=list["Sequence"])
    num_unfinished: int = 0
    has_started: bool = False


@dataclass(slots=True, eq=False, repr=False, kw_only=True)
class Sequence:
    """Mutable state of one choice, owned by the scheduler.

    By its key/value entries, with `scheduled = num_computed + num_in_flight`:

        0            num_cached        num_computed         scheduled              length
        |---- shared ----|---- written ----|---- in flight ----|---- to compute ----|
          cache's pages,    ours, read back    dispatched, not    in no step yet
          read-only                            read back

    By its tokens, the last one or two of which may still be on the device:

        0             num_prompt            length - num_awaited            length
        |--- prompt_ids ---|------ output_ids ------|--- sampled, not read ---|

    So `num_cached <= num_computed <= scheduled <= length`. A sequence that is not running holds
    nothing: no slot, no pages, and all counters but `length` are 0.

    order: precedence, lower first; unique. max_length: prompt and output tokens at most.
    num_sent_pages: how many of `pages` the runner knows. num_registered: how many of them the
    prefix cache was offered. digests: the chain over its full pages, as far as it was needed.
    targets_stop: log-probabilities are wanted of prompt tokens at positions [1, targets_stop);
    0 when none are, or no more. num_cached_tokens: prompt tokens found in the cache when it first
    ran (None before that), which is what usage reports.
    """

    group: SequenceGroup
    index: int
    order: tuple[int, int, int]
    seed: int
    root_digest: bytes
    max_length: int
    eos_ids: frozenset[int]
    length: int
    output_ids: list[int] = field(default_factory=list[int])
    slot: int | None = None
    pages: list[int] = field(default_factory=list[int])
    num_cached: int = 0
    num_computed: int = 0
    num_in_flight: int = 0
    num_awaited: int = 0
    num_sent_pages: int = 0
    num_registered: int = 0
    digests: list[bytes] = field(default_factory=list[bytes])
    targets_stop: int = 0
    prompt_logprobs: list[PositionLogprobs] = field(default_factory=list[PositionLogprobs])
    num_preemptions: int = 0
    num_cached_tokens: int | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: str | None = None
    scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    finished_s: float | None = None

    def __repr__(self) -> str:
        scheduled = self.num_computed + self.num_in_flight
        return (
            f"Sequence({self.group.request.id!r}, choice {self.index}, slot {self.slot}, entries"
            f" {self.num_cached} <= {self.num_computed} <= {scheduled} <= {self.length}, of which"
            f" awaited {self.num_awaited}, pages {self.pages}, {self.finish_reason})"
        )

    @property
    def request(self) -> Request:
        """The request this is a choice of."""
        return self.group.request

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.group.request.prompt_ids)

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self.finish_reason is not None

    @property
    def times(self) -> RequestMetrics:
        """When what happened to it, as reported to the user."""
        return RequestMetrics(
            arrival_s=self.request.arrival_s,
            scheduled_s=self.scheduled_s,
            first_token_s=self.first_token_s,
            finished_s=self.finished_s,
            num_preemptions=self.num_preemptions,
        )

    def tokens(self, start: int, stop: int) -> tuple[int, ...]:
        """Return the known tokens at positions [start, stop) of prompt and output."""
        prompt_ids = self.group.request.prompt_ids
        split = len(prompt_ids)
        if start >= split:
            return tuple(self.output_ids[start - split : stop - split])
        if stop <= split:
            return prompt_ids[start:stop]
        return prompt_ids[start:] + tuple(self.output_ids[: stop - split])

    def extend_digests(self, num_pages: int, *, page_size: int) -> None:
        """Make `digests` cover at least the first `num_pages` pages, whose tokens are known."""
        for page in range(len(self.digests), num_pages):
            parent = self.digests[-1] if self.digests else self.root_digest
            token_ids = self.tokens(page * page_size, (page + 1) * page_size)
            self.digests.append(page_digest(parent, token_ids))

    def enter(self, slot: int, pages: list[int], *, num_shared: int, page_size: int) -> None:
        """Take a slot and pages, the first `num_shared` of which hold its first tokens already."""
        self.slot = slot
        self.pages = pages
        self.num_cached = self.num_computed = num_shared * page_size
        self.num_registered = num_shared

    def start(self, num_tokens: int, *, samples: bool) -> None:
        """Count the next `num_tokens` tokens as in flight, and the token they will yield."""
        self.num_in_flight += num_tokens
        if samples:
            self.num_awaited += 1
            self.length += 1

    def commit(self, num_tokens: int) -> None:
        """Count the oldest `num_tokens` in flight as computed."""
        self.num_in_flight -= num_tokens
        self.num_computed += num_tokens

    def append(self, token_id: int) -> None:
        """Turn the oldest awaited token into a known one."""
        self.num_awaited -= 1
        self.output_ids.append(token_id)

    def leave(self) -> None:
        """Forget slot, pages and whatever is in flight; the known tokens stay."""
        self.slot = None
        self.pages = []
        self.length -= self.num_awaited
        self.num_cached = self.num_computed = self.num_in_flight = self.num_awaited = 0
        self.num_sent_pages = self.num_registered = 0
        if self.targets_stop:
            # The prompt starts over, and so do its log-probabilities.
            self.prompt_logprobs.clear()

    def check_integrity(self) -> None:
        """Assert the invariants of the class docstring."""
        scheduled = self.num_computed + self.num_in_flight
        assert 0 <= self.num_cached <= self.num_computed <= scheduled <= self.length, self
        assert self.num_in_flight >= 0, self
        assert self.num_awaited >= 0, self
        assert self.length == self.num_prompt + len(self.output_ids) + self.num_awaited, self
        assert self.length <= self.max_length, self
        assert self.num_sent_pages <= len(self.pages), self
        assert self.num_registered <= len(self.pages), self
        if self.slot is None:
            assert not self.pages, self
            assert scheduled == self.num_awaited == 0, self


class Update(NamedTuple):
    """What a step did to a sequence: it got a token, or it ended by an error (no token)."""

    sequence: Sequence
    token_id: int | None = None
    logprobs: PositionLogprobs | None = None


def choice_seed(seed: int, index: int) -> int:
    """Return the start of the random stream of choice `index` of a request with `seed`.

    It is in [0, 2**64), and the same in every process and release: users rely on it.
    """
    digest = blake2b(f"{seed} {index}".encode(), digest_size=8, person=b"seed").digest()
    return int.from_bytes(digest)
