"""A sequence: one choice of one request, from its arrival to its last token."""

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from operator import attrgetter

from jaxserve.engine.prefix_cache import Order, page_digests, private_root_digest, root_digest
from jaxserve.grammar.walks import Walk
from jaxserve.request import FinishReason, PositionLogprobs, Request, RequestMetrics

by_order = attrgetter("order")


@dataclass(slots=True, eq=False, kw_only=True)
class SequenceGroup:
    """The choices of one request, which share its prompt.

    has_started: whether any choice has ever run. client, first_key: whose request it is, and how
    that client calls its first choice, see `Engine.add`.
    """

    request: Request
    sequences: list["Sequence"] = field(default_factory=list["Sequence"])
    num_unfinished: int = 0
    has_started: bool = False
    client: int = 0
    first_key: int = 0


@dataclass(slots=True, eq=False, repr=False, kw_only=True)
class Sequence:
    """Mutable state of one choice, owned by the scheduler.

    By its key/value entries:

        0            num_cached        num_computed       num_scheduled            length
        |---- shared ----|---- written ----|---- in flight ----|---- to compute ----|
          cache's pages,    ours, read back    dispatched, not    in no step yet
          read-only                            read back

    By its tokens, the last one or two of which may still be on the device:

        0             num_prompt              num_known                     length
        |--- prompt_ids ---|------ output_ids ------|--- sampled, not read ---|

    A sequence that follows a grammar, or runs beside one that does, is held where num_scheduled
    reaches length: its next token is drawn between two steps (grammars.py).

    So `num_cached <= num_computed <= num_scheduled <= length`. A sequence that is not running
    holds nothing: no slot, no pages, and all counters but `length` are 0.

    order: precedence, lower first; unique. root_digest: of the chain of `digests`, None if its
    pages are of use to nobody else. stop_ids: tokens that end it, of which eos_ids go
    without saying. max_length: prompt and output tokens at most. is_decoding: whether a token was
    sampled since it took its slot, so that one token is all it ever lacks. num_sent_pages: how
    many of `pages` the runner knows. num_reserved: pages promised for its known tokens, beyond
    `pages`. num_registered: how many of them the prefix cache was
    offered. digests: the chain over its full pages, as far as it was needed.
    awaited_digest: of the page it waits for, which another sequence computes. num_passed: how
    often another has run before it for what the cache held.
    targets_stop: log-probabilities are wanted of prompt tokens at positions [1, targets_stop);
    0 when none are, or no more. num_cached_tokens: prompt tokens found in the cache when it first
    ran (None before that), which is what usage reports. vector: of a request that pools. walk:
    through its grammar, None without one. is_told: whether its client knows that it has begun.
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
    pages: list[int] = field(default_factory=list[int])
    num_cached: int = 0
    num_computed: int = 0
    num_scheduled: int = 0
    is_decoding: bool = False
    walk: Walk | None = None
    is_told: bool = False
    num_sent_pages: int = 0
    num_reserved: int = 0
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
    vector: bytes | None = None
    scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    finished_s: float | None = None

    def __repr__(self) -> str:
        return (
            f"Sequence({self.group.request.id!r}, choice {self.index}, slot {self.slot}, entries"
            f" {self.num_cached} <= {self.num_computed} <= {self.num_scheduled} <= {self.length},"
            f" known {self.num_known}, pages {self.pages}, {self.finish_reason})"
        )

    @property
    def request(self) -> Request:
        """The request this is a choice of."""
        return self.group.request

    @property
    def reads_cache(self) -> bool:
        """Whether it may start from pages that others have computed.

        Log-probabilities of the prompt come only from computing it. Choices that follow start from
        the first one's pages in any case.
        """
        skips = self.request.params.skip_reading_prefix_cache and self.index == 0
        return not (skips or self.root_digest is None or self.targets_stop)

    @property
    def num_known(self) -> int:
        """Tokens that the host has: the others are still on the device."""
        return self.num_prompt + len(self.output_ids)

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self.finish_reason is not None

    @property
    def has_stopped(self) -> bool:
        """Whether its newest token is a stop token."""
        return bool(self.output_ids) and self.output_ids[-1] in self.stop_ids

    @property
    def is_held(self) -> bool:
        """Whether its next token waits to be drawn."""
        return self.is_decoding and self.num_scheduled == self.length

    @property
    def is_jumping(self) -> bool:
        """Whether all the tokens it lacks were forced by its grammar, or drawn before."""
        return self.walk is not None and self.num_scheduled >= self.num_prompt

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
        done = len(self.digests)
        if done < num_pages:
            parent = self.digests[-1] if self.digests else self.root_digest
            assert parent is not None, self
            token_ids = self.tokens(done * page_size, num_pages * page_size)
            self.digests += page_digests(parent, token_ids, page_size=page_size)

    def enter(self, slot: int, shared: list[int], *, num_reserved: int, page_size: int) -> None:
        """Take a slot, pages that hold its first tokens already, and a promise of further ones."""
        self.slot = slot
        self.pages = shared
        self.num_reserved = num_reserved
        self.num_cached = self.num_computed = self.num_scheduled = len(shared) * page_size
        self.num_registered = len(shared)

    def leave(self) -> None:
        """Forget slot, pages and whatever is in flight; the known tokens stay."""
        self.slot = None
        self.pages = []
        self.length = self.num_known
        self.num_cached = self.num_computed = self.num_scheduled = 0
        self.num_sent_pages = self.num_registered = self.num_reserved = 0
        self.is_decoding = False
        if self.targets_stop:
            # The prompt starts over, and so do its log-probabilities.
            self.prompt_logprobs.clear()

    def check_integrity(self) -> None:
        """Assert the invariants of the class docstring."""
        counts = (self.num_cached, self.num_computed, self.num_scheduled, self.length)
        assert list(counts) == sorted(counts), self
        assert self.num_cached >= 0, self
        assert self.num_known <= self.length, self
        assert not self.is_decoding or self.num_scheduled >= self.length - 1, self
        assert self.length <= self.max_length, self
        assert self.num_sent_pages <= len(self.pages), self
        assert self.num_registered <= len(self.pages), self
        if self.slot is None:
            assert not self.pages, self
            assert self.num_reserved == 0, self
            assert self.num_scheduled == self.is_decoding == 0, self
            assert self.length == self.num_known, self


# What a step did to a sequence: it got a token, perhaps with log-probabilities, or it ended by an
# error (no token). A plain tuple: one is made for every token.
type Update = tuple[Sequence, int | None, PositionLogprobs | None]


def new_group(
    request: Request,
    *,
    order: tuple[int, int],
    draw_seed: Callable[[], int],
    eos_ids: frozenset[int],
    max_length: int,
    enable_prefix_caching: bool,
) -> SequenceGroup:
    """Make the choices of a request, whose precedence is `order` and, among them, their index.

    order: its second number is the request's alone. draw_seed: asked if the request has no seed.
    """
    group = SequenceGroup(request=request)
    params, num_prompt = request.params, len(request.prompt_ids)
    if params.ignore_eos:
        eos_ids = frozenset()
    root: bytes | None = None
    if enable_prefix_caching:
        root = root_digest(request.cache_salt)
    elif params.n > 1:
        root = private_root_digest(order[1])
    for index in range(params.n):
        seed = draw_seed() if params.seed is None else choice_seed(params.seed, index)
        group.sequences.append(
            Sequence(
                group=group,
                index=index,
                order=(*order, index),
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
    """Return the start of the random stream of choice `index` of a request with `seed`.

    It is in [0, 2**64), and the same in every process and release: users rely on it.
    """
    digest = blake2b(f"{seed} {index}".encode(), digest_size=8, person=b"seed").digest()
    return int.from_bytes(digest)
