"""Sequences (one for each choice of a request) and their bookkeeping."""

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from operator import attrgetter

from jaxserve.api.plan import TableWrite
from jaxserve.api.request import FinishReason, PositionLogprobs, Request, RequestMetrics
from jaxserve.engine.cache_group import Holding
from jaxserve.engine.prefix_cache import Order, page_digests, private_root_digest, root_digest
from jaxserve.grammar.matchers import GrammarMatcher

by_order = attrgetter("order")


@dataclass(slots=True, eq=False, kw_only=True)
class SequenceGroup:
    """The choices of one request, which share its prompt.

    has_started: whether any choice has ever run. client, first_key: the client that sent the
    request, and its key for the first choice; see `Engine.add`. lengths: number of tokens generated
    by each finished choice.
    """

    request: Request
    sequences: list["Sequence"] = field(default_factory=list["Sequence"])
    num_unfinished: int = 0
    has_started: bool = False
    client: int = 0
    first_key: int = 0
    lengths: list[int] = field(default_factory=list[int])


@dataclass(slots=True, eq=False, repr=False, kw_only=True)
class Sequence:
    """Mutable state of one choice, owned by the scheduler.

    Its key/value entries:

        0            num_cached        num_computed       num_scheduled            length
        |---- shared ----|---- written ----|---- in flight ----|---- to compute ----|
          read-only,        own pages, read    dispatched, not    not in a step
          from the cache    back               read back          yet

    Its tokens, the last one or two of which may still be on the device:

        0             num_prompt              num_known                     length
        |--- prompt_ids ---|------ output_ids ------|--- sampled, not read ---|

    Sampling is deferred for a sequence with a grammar, and for sequences in the same step as one.
    Then num_scheduled reaches length, and the next token is sampled between two steps
    (grammars.py). While a row with draft tokens is in flight, num_scheduled and length count all
    of them; afterwards they go back to the accepted ones.

    Always `num_cached <= num_computed <= num_scheduled <= length`. A sequence that is not running
    has no slot and no pages, and all counters except `length` are 0.

    order: precedence, lower first; unique. root_digest: root of `digests`; None if no other
    sequence may share its pages. stop_ids: tokens that end the sequence, eos_ids included.
    max_length: limit of prompt and output tokens. is_decoding: whether a token was sampled since
    the sequence took its slot, so that it lacks one token at a time. is_verifying: whether a row
    with draft tokens is in flight. is_assigned: whether the runner has got the slot's assignment.
    holdings: its pages in each cache group. capacity: the length up to which single-token rows
    need no more pages. table: changes to its row of the page table not sent to the runner yet.
    num_registered: full pages already offered to the prefix cache. digests: of its full pages, as
    far as they were needed. awaited_digest: of the page it waits for, which another sequence
    computes. num_passed: how often another sequence with a longer prefix cache hit ran first.
    targets_stop: log-probabilities of prompt tokens at positions [1, targets_stop) are still to
    be computed; 0 if none are. num_cached_tokens: prompt tokens found in the cache when the
    sequence first ran (None before that), as reported in usage. vector: result of a pooling
    request. matcher: matcher of its grammar, None without one. is_reported: whether the client has
    been sent a Start.
    """

    group: SequenceGroup
    index: int
    order: Order
    seed: int
    root_digest: bytes | None
    max_length: int
    eos_ids: frozenset[int]
    stop_ids: frozenset[int]
    num_prompt: int
    length: int
    output_ids: list[int] = field(default_factory=list[int])
    slot: int | None = None
    holdings: list[Holding] = field(default_factory=list[Holding])
    capacity: int = 0
    table: list[TableWrite] = field(default_factory=list[TableWrite])
    num_cached: int = 0
    num_computed: int = 0
    num_scheduled: int = 0
    is_decoding: bool = False
    is_verifying: bool = False
    matcher: GrammarMatcher | None = None
    is_reported: bool = False
    is_assigned: bool = False
    num_registered: int = 0
    digests: list[bytes] = field(default_factory=list[bytes])
    awaited_digest: bytes | None = None
    targets_stop: int = 0
    prompt_logprobs: list[PositionLogprobs] = field(default_factory=list[PositionLogprobs])
    num_preemptions: int = 0
    num_passed: int = 0
    num_cached_tokens: int | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    error: str | None = None
    error_param: str | None = None
    vector: bytes | None = None
    scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    finished_s: float | None = None

    def __repr__(self) -> str:
        return (
            f"Sequence({self.group.request.id!r}, choice {self.index}, slot {self.slot}, entries"
            f" {self.num_cached} <= {self.num_computed} <= {self.num_scheduled} <= {self.length},"
            f" known {self.num_known}, {self.finish_reason})"
        )

    @property
    def request(self) -> Request:
        """The request of which this sequence is a choice."""
        return self.group.request

    @property
    def reads_cache(self) -> bool:
        """Whether it may start from pages that other sequences have computed.

        Log-probabilities of the prompt require computing it. With skip_reading_prefix_cache, only
        the first choice skips the cache: the others may start from its pages.
        """
        skips = self.request.params.skip_reading_prefix_cache and self.index == 0
        return not (skips or self.root_digest is None or self.targets_stop)

    @property
    def num_known(self) -> int:
        """Number of tokens that the host has read; later ones are still on the device."""
        return self.num_prompt + len(self.output_ids)

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, for any reason."""
        return self.finish_reason is not None

    @property
    def may_stop(self) -> bool:
        """Whether it has the `min_tokens` that must come before a stop token."""
        return len(self.output_ids) >= self.request.params.min_tokens

    @property
    def has_stopped(self) -> bool:
        """Whether its last token is a stop token."""
        return bool(self.output_ids) and self.output_ids[-1] in self.stop_ids

    @property
    def is_deferred(self) -> bool:
        """Whether sampling of its next token is deferred."""
        return self.is_decoding and self.num_scheduled == self.length and not self.is_verifying

    @property
    def is_jumping(self) -> bool:
        """Whether all tokens left to compute were forced by its grammar or sampled before."""
        return self.matcher is not None and self.num_scheduled >= self.num_prompt

    @property
    def times(self) -> RequestMetrics:
        """Times of its events, as reported to the user."""
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

    def until_end(self, token_ids: tuple[int, ...]) -> tuple[int, ...]:
        """Return the tokens that may be appended: up to a stop token or max_length."""
        min_tokens, num_before = self.request.params.min_tokens, len(self.output_ids)
        for count, token_id in enumerate(token_ids, start=1):
            if token_id in self.stop_ids and num_before + count >= min_tokens:
                return token_ids[:count]
        return token_ids[: self.max_length - self.num_known]

    def extend_digests(self, num_pages: int, *, page_size: int) -> None:
        """Extend `digests` to at least the first `num_pages` pages, whose tokens are known."""
        done = len(self.digests)
        if done < num_pages:
            parent = self.digests[-1] if self.digests else self.root_digest
            assert parent is not None, self
            token_ids = self.tokens(done * page_size, num_pages * page_size)
            self.digests += page_digests(parent, token_ids, page_size=page_size)

    def enter(self, slot: int, *, num_cached: int) -> None:
        """Take a slot and start after `num_cached` cached tokens."""
        self.slot = slot
        self.num_cached = self.num_computed = self.num_scheduled = num_cached

    def leave(self) -> None:
        """Reset slot, pages and in-flight tokens; the known tokens stay."""
        self.slot = None
        self.holdings = []
        self.table.clear()
        self.length = self.num_known
        self.num_cached = self.num_computed = self.num_scheduled = 0
        self.capacity = self.num_registered = 0
        self.is_decoding = self.is_verifying = self.is_assigned = False
        if self.targets_stop:
            # The prompt will be computed again, with its log-probabilities.
            self.prompt_logprobs.clear()

    def check_integrity(self) -> None:
        """Assert the invariants of the class docstring."""
        counts = (self.num_cached, self.num_computed, self.num_scheduled, self.length)
        assert list(counts) == sorted(counts), self
        assert self.num_cached >= 0, self
        assert self.num_known <= self.length, self
        assert not self.is_decoding or self.num_scheduled >= self.length - 1, self
        assert self.length <= self.max_length, self
        if self.slot is None:
            assert not self.holdings, self
            assert not self.table, self
            assert self.num_scheduled == self.is_decoding == 0, self
            assert self.length == self.num_known, self


# Result of a step for one sequence: its new tokens and, if requested, their log-probabilities. No
# tokens if the sequence ended without one. A plain tuple, because there is one for every row.
type Update = tuple[Sequence, tuple[int, ...], tuple[PositionLogprobs, ...] | None]


def new_group(
    request: Request,
    *,
    number: int,
    order: tuple[int, int],
    next_seed: Callable[[], int],
    eos_ids: frozenset[int],
    max_length: int,
    enable_prefix_caching: bool,
) -> SequenceGroup:
    """Create the sequences of a request.

    number: unique number of the request. order: priority and turn of the first choice; the turn of
    each further choice is one higher, as if it had arrived with a later request. next_seed: called
    for each choice if the request has no seed.
    """
    group = SequenceGroup(request=request)
    params, num_prompt = request.params, len(request.prompt_ids)
    root: bytes | None = None
    if enable_prefix_caching:
        root = root_digest(request.cache_salt)
    elif params.n > 1:
        root = private_root_digest(number)
    priority, turn = order
    for index in range(params.n):
        seed = next_seed() if params.seed is None else choice_seed(params.seed, index)
        group.sequences.append(
            Sequence(
                group=group,
                index=index,
                order=(priority, turn + index, number, index),
                seed=seed,
                root_digest=root,
                max_length=max_length,
                eos_ids=eos_ids,
                stop_ids=eos_ids.union(params.stop_token_ids),
                num_prompt=num_prompt,
                length=num_prompt,
            )
        )
    if params.prompt_logprobs is not None and num_prompt > 1:
        group.sequences[0].targets_stop = num_prompt
    group.num_unfinished = params.n
    return group


def choice_seed(seed: int, index: int) -> int:
    """Return the seed of choice `index` of a request with `seed`.

    The result is in [0, 2**64) and must not change between processes or releases, because users
    rely on reproducible outputs.
    """
    digest = blake2b(f"{seed} {index}".encode(), digest_size=8, person=b"seed").digest()
    return int.from_bytes(digest)
