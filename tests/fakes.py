"""Fakes for host-only tests, such as a runner without a device."""

from array import array
from collections import deque
from collections.abc import Callable
from functools import reduce
from hashlib import blake2b

import numpy as np

from jaxserve.api.engine_config import CacheConfig
from jaxserve.api.plan import (
    NULL_PAGE,
    NULL_SLOT,
    DeferredSamplePlan,
    RowPlan,
    StepLimits,
    StepPlan,
    StepResult,
    StepRun,
)
from jaxserve.api.request import PositionLogprobs, TokenLogprob
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.engine.sequence import Sequence
from tests.fake_caches import FAKE_GROUPS, Slot, chain


def sample(
    entry: bytes,
    *,
    seed: int,
    vocab_size: int,
    banned: tuple[int, ...] = (),
    position: int,
    mask: np.ndarray | None = None,
) -> int:
    """The token the fake's language model continues a text with whose last KV entry is `entry`."""
    if mask is not None:
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")[:vocab_size]
        banned = (*banned, *np.flatnonzero(allowed == 0).tolist())
        assert len(set(banned)) < vocab_size, "every token is forbidden"
    value = blake2b(entry + seed.to_bytes(8, "big") + position.to_bytes(8, "big"), digest_size=8)
    token_id = int.from_bytes(value.digest()) % vocab_size
    while token_id in banned:
        token_id = (token_id + 1) % vocab_size
    return token_id


def solo_run(
    prompt_ids: tuple[int, ...],
    params: SamplingParams,
    *,
    seed: int,
    vocab_size: int,
    eos_ids: frozenset[int] = frozenset(),
    max_length: int,
) -> list[int]:
    """The output of one sequence alone, by the definition of the fake's language model."""
    stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else eos_ids)
    entry = b""
    for token_id in prompt_ids:
        entry = chain(entry, token_id)
    output_ids: list[int] = []
    while True:
        banned = tuple(sorted(stop_ids)) if len(output_ids) < params.min_tokens else ()
        length = len(prompt_ids) + len(output_ids)
        token_id = sample(entry, seed=seed, vocab_size=vocab_size, banned=banned, position=length)
        output_ids.append(token_id)
        if token_id in stop_ids and token_id not in banned:
            return output_ids
        if len(output_ids) == params.max_tokens or length + 1 == max_length:
            return output_ids
        entry = chain(entry, token_id)


def draft(sequence: Sequence, count: int, *, vocab_size: int, wrong_every: int) -> tuple[int, ...]:
    """The next tokens of a sequence, but that one at every `wrong_every`th position is wrong."""
    tokens = [*sequence.tokens(0, sequence.num_known)]
    entry = reduce(chain, tokens, b"")
    drafts = []
    for position in range(len(tokens), len(tokens) + count):
        num_generated = position - sequence.num_prompt
        bans = num_generated < sequence.request.params.min_tokens
        token_id = sample(
            entry,
            seed=sequence.seed,
            vocab_size=vocab_size,
            banned=tuple(sorted(sequence.stop_ids)) if bans else (),
            position=position,
        )
        if position % wrong_every == 0:
            token_id = (token_id + 1) % vocab_size
        drafts.append(token_id)
        entry = chain(entry, token_id)
    return tuple(drafts)


def vector(entry: bytes) -> bytes:
    """The fake's vector of a prompt whose last KV entry is `entry`: 8 numbers."""
    return array("f", list(entry)).tobytes()


def solo_vector(prompt_ids: tuple[int, ...]) -> bytes:
    """The vector of a prompt that is alone in the world."""
    return vector(reduce(chain, prompt_ids, b""))


class FakePendingStep:
    """A step that is computed at dispatch. Its result is returned by `wait`."""

    def __init__(self, runner: "FakeRunner", num_rows: int, result: StepResult) -> None:
        self._runner = runner
        self._result = result
        self.run = StepRun(
            program="fake",
            num_tokens=num_rows,
            padded_tokens=num_rows,
            padded_sequences=num_rows,
        )

    def is_ready(self) -> bool:
        """The fake device takes no time."""
        return True

    def wait(self) -> StepResult:
        """Return the result; checks that steps are waited for once each, in order."""
        assert self._runner.pending.popleft() is self, "steps are not read in dispatch order"
        return self._result


class FakeRunner:
    """A device for host tests: a deterministic language model behind real page tables.

    Each KV entry is a digest of all tokens up to it, chained through the *stored* entry before it,
    and the next token is a hash of the last stored entry. A page that is shared wrongly, reused
    too early, or written by two sequences therefore shows as a failed check here, or at the latest
    as an output other than `solo_run`'s. Every rule of plan.py is asserted.

    pools: whether it gives vectors of prompts, and no tokens. fails: called with each (row, tokens
    so far) and says whether its logits are not finite.
    """

    def __init__(
        self,
        *,
        cache: CacheConfig,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        vocab_size: int = 64,
        max_in_flight: int = 2,
        pools: bool = False,
        fails: Callable[[RowPlan, list[int]], bool] = lambda row, tokens: False,
    ) -> None:
        self._pools = pools
        self.vocab_size = vocab_size
        self.limits = StepLimits(
            num_tokens=max_num_batched_tokens,
            num_sequences=max_num_seqs,
            num_deferred_samples=max_num_seqs,
        )
        self.pending: deque[FakePendingStep] = deque()
        self.plans: list[StepPlan] = []
        self.num_computed_tokens = 0
        self.num_deferred_samples = 0
        self._cache = cache
        self._page_size = cache.page_size
        self._num_columns = sum(group.num_columns for group in cache.groups)
        self._entries: list[dict[tuple[int, int], bytes]] = [{} for _ in cache.num_pages]
        self._groups = [
            FAKE_GROUPS[type(group)](group, self._entries[group.pool]) for group in cache.groups
        ]
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self.max_in_flight = max_in_flight
        self._fails = fails
        self._last_entries: dict[int, list[bytes]] = {}  # by slot, of the tokens of its last row
        self._slots: dict[int, Slot] = {}

    def dispatch(self, plan: StepPlan) -> FakePendingStep:
        """Check and compute the plan."""
        self.plans.append(plan)
        self._check_shape(plan)
        for assignment in plan.assignments:
            assert NULL_SLOT < assignment.slot <= self._max_num_seqs
            assert 0 <= assignment.seed < 2**64
            tokens = [*assignment.prompt_ids, *assignment.output_ids]
            self._slots[assignment.slot] = Slot(assignment, tokens, [0] * self._num_columns)
        token_ids: list[tuple[int, ...]] = []
        invalid: set[int] = set()
        logprobs: dict[int, tuple[PositionLogprobs, ...]] = {}
        prompt_logprobs: dict[int, tuple[PositionLogprobs, ...]] = {}
        vectors: dict[int, bytes] = {}
        for row in plan.rows:
            self._check_row(row, self._slots[row.slot])
        self._check_writes(plan)
        for index, row in enumerate(plan.rows):
            slot = self._slots[row.slot]
            self._write(row, slot)
            if row.targets:
                prompt_logprobs[index] = tuple(token_logprobs(token) for token in row.targets)
            if self._fails(row, slot.tokens):
                invalid.add(index)
            if self._pools and row.samples:
                vectors[index] = vector(self._last_entries[row.slot][-1])
            yielded = self._yield(row, slot) if row.samples and not self._pools else ()
            token_ids.append(yielded)
            if yielded and slot.assignment.params.logprobs is not None:
                logprobs[index] = reported(yielded, slot.assignment.params)
        self.num_computed_tokens += plan.num_tokens
        result = StepResult(
            token_ids=tuple(token_ids),
            invalid_rows=frozenset(invalid),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            vectors=vectors,
        )
        pending = FakePendingStep(self, plan.num_tokens, result)
        self.pending.append(pending)
        # Between two steps there may be deferred sampling.
        assert len(self.pending) <= self.max_in_flight + 1, "too much in flight"
        return pending

    def _check_shape(self, plan: StepPlan) -> None:
        assert plan.rows, "an empty step"
        assert plan.num_tokens <= min(self._max_num_batched_tokens, self.limits.num_tokens)
        assert len(plan.rows) <= self.limits.num_sequences
        slots = [row.slot for row in plan.rows]
        assert len(set(slots)) == len(slots), "two rows of one slot"
        assigned = [assignment.slot for assignment in plan.assignments]
        assert len(set(assigned)) == len(assigned), "a slot assigned twice"
        assert set(assigned) <= set(slots), "a slot assigned to nothing"
        is_chunk = [row.num_tokens > 1 for row in plan.rows]
        assert is_chunk == sorted(is_chunk), "rows of a single token come first"

    def _check_row(self, row: RowPlan, slot: Slot) -> None:
        stop = row.start + row.num_tokens
        has_grammar = slot.assignment.params.structured_outputs is not None
        assert row.num_tokens >= 1
        if slot.has_row:
            assert row.start == slot.num_written, "positions are not contiguous"
        else:
            # The first row after an assignment may start behind shared pages, which are full.
            assert row.start % self._page_size == 0, "a shared page is not full"
            slot.has_row = True
        if row.feedback:
            assert row.num_tokens == 1
            assert row.samples or row.is_deferred
            # The token sampled last in this slot is the one that follows everything written.
            assert len(slot.tokens) == row.start + 1, "no token was sampled for this position"
        else:
            assert len(row.token_ids) == row.num_tokens
            if row.samples > 1:
                assert len(slot.tokens) == row.start + 1, "drafts follow the last token"
                assert row.samples == row.num_tokens
                slot.tokens += row.token_ids[1:]
            if has_grammar:
                # Tokens that a grammar forces were never sampled here.
                slot.tokens += row.token_ids[len(slot.tokens) - row.start :]
            assert list(row.token_ids) == slot.tokens[row.start : stop], "wrong input tokens"
        samples, is_last = row.samples > 0 or row.is_deferred, stop == len(slot.tokens)
        # A grammar may have forced more tokens than this row has.
        assert samples == is_last or (has_grammar and is_last), "a sample before the last token"
        assert not (row.samples and has_grammar), "tokens of a grammar are sampled under a bitmask"
        slot.is_deferred = row.is_deferred
        if row.targets:
            prompt_ids = slot.assignment.prompt_ids
            assert row.targets == prompt_ids[row.start + 1 : stop + 1], "wrong targets"
        for column, pages in row.table:
            assert 0 <= column <= column + len(pages) <= self._num_columns
            slot.table[column : column + len(pages)] = pages
        entry = b""
        chained = [entry := chain(entry, token_id) for token_id in slot.tokens[: row.start]]
        for number, group in enumerate(self._groups):
            num_pages = self._cache.num_pages[group.group.pool]
            places = group.write(slot, row, self._page_size)
            assert all(NULL_PAGE < page < num_pages for page, _ in places), "a page does not exist"
            # Everything read must be there, and be this very sequence's prefix.
            read = group.read(slot, row, self._page_size)
            assert group.overwrites or not set(read) & set(places), "a page twice in one sequence"
            for position, place in zip(group.seen(row.start), read, strict=True):
                assert group.entries.get(place) == chained[position] + bytes([number]), (
                    f"position {position} of slot {row.slot} does not hold its own prefix"
                )

    def _check_writes(self, plan: StepPlan) -> None:
        """No page that one row writes may be written or read by another of the same step."""
        writers: dict[tuple[int, int], int] = {}
        for group in self._groups:
            for row in plan.rows:
                for page, _ in set(group.write(self._slots[row.slot], row, self._page_size)):
                    key = group.group.pool, page
                    assert writers.setdefault(key, row.slot) == row.slot, f"two rows write {key}"
        for group in self._groups:
            for row in plan.rows:
                for page, _ in set(group.read(self._slots[row.slot], row, self._page_size)):
                    key = group.group.pool, page
                    assert writers.get(key, row.slot) == row.slot, f"{key} read while written"

    def _write(self, row: RowPlan, slot: Slot) -> None:
        stop = row.start + row.num_tokens
        for number, group in enumerate(self._groups):
            read = group.read(slot, row, self._page_size)
            entry = group.entries[read[-1]][:-1] if read else b""
            written = group.write(slot, row, self._page_size)
            entries = self._last_entries[row.slot] = []
            for token_id, place in zip(slot.tokens[row.start : stop], written, strict=True):
                entries.append(entry := chain(entry, token_id))
                group.entries[place] = entry + bytes([number])
        slot.num_written = stop

    def sample_deferred(self, plan: DeferredSamplePlan) -> FakePendingStep:
        """Check deferred sampling, compute it, and return its result when asked."""
        assert 0 < len(plan.rows) <= self.limits.num_deferred_samples
        assert len({row.slot for row in plan.rows}) == len(plan.rows), "a slot is sampled twice"
        token_ids: list[tuple[int, ...]] = []
        empty: set[int] = set()
        logprobs: dict[int, tuple[PositionLogprobs, ...]] = {}
        for index, (row, mask) in enumerate(zip(plan.rows, plan.masks, strict=True)):
            slot = self._slots[row.slot]
            assert slot.is_deferred, "sampling was not deferred"
            has_grammar = slot.assignment.params.structured_outputs is not None
            assert has_grammar == (mask is not None), "a mask belongs to a grammar"
            assert mask is None or mask.shape == (-(-self.vocab_size // 32),)
            slot.is_deferred = False
            assert row.start + row.num_tokens == slot.num_written == len(slot.tokens)
            tokens = (self._sample(slot, self._last_entries[row.slot][-1], len(slot.tokens), mask),)
            slot.tokens += tokens
            token_ids.append(tokens)
            if not self._allows(slot, mask):
                empty.add(index)
            if slot.assignment.params.logprobs is not None:
                logprobs[index] = reported(tokens, slot.assignment.params)
        self.num_deferred_samples += 1
        result = StepResult(
            token_ids=tuple(token_ids), empty_rows=frozenset(empty), logprobs=logprobs
        )
        pending = FakePendingStep(self, len(plan.rows), result)
        self.pending.append(pending)
        return pending

    def _allows(self, slot: Slot, mask: np.ndarray | None) -> bool:
        """Whether a mask allows any of the tokens that the request does."""
        allowed = slot.assignment.params.allowed_token_ids
        if allowed is None or mask is None:
            return True
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
        return bool(bits[list(allowed)].any())

    def _yield(self, row: RowPlan, slot: Slot) -> tuple[int, ...]:
        """Sample after each of a row's last `samples` tokens, as long as these were sampled too."""
        stop = row.start + row.num_tokens
        first = stop - row.samples + 1
        drafts = slot.tokens[first:stop]
        del slot.tokens[first:]
        for position in range(first, stop + 1):
            entry = self._last_entries[row.slot][position - 1 - row.start]
            slot.tokens.append(self._sample(slot, entry, position))
            if slot.tokens[position] != [*drafts, None][position - first]:
                break
        slot.num_written = len(slot.tokens) - 1
        return tuple(slot.tokens[first:])

    def _sample(
        self, slot: Slot, entry: bytes, position: int, mask: np.ndarray | None = None
    ) -> int:
        """Return the token at a position, behind the KV entry of the token before."""
        assignment = slot.assignment
        bans = position - len(assignment.prompt_ids) < assignment.params.min_tokens
        return sample(
            entry,
            seed=assignment.seed,
            vocab_size=self.vocab_size,
            banned=assignment.stop_ids if bans else (),
            position=position,
            mask=mask,
        )


def reported(token_ids: tuple[int, ...], params: SamplingParams) -> tuple[PositionLogprobs, ...]:
    """Log-probabilities of sampled tokens: the most likely tokens, and those requested by id."""
    found = [token_logprobs(token_id, params.logprobs or 0) for token_id in token_ids]
    named = tuple(TokenLogprob(each, -float(each), None) for each in params.logprob_token_ids)
    return tuple(PositionLogprobs(chosen=each.chosen, top=each.top + named) for each in found)


def token_logprobs(token_id: int, num_top: int = 0) -> PositionLogprobs:
    """Log-probabilities by which a test recognises the token they belong to: minus its id."""
    return PositionLogprobs(
        chosen=TokenLogprob(token_id, -float(token_id), 1),
        top=tuple(TokenLogprob(other, -float(other), other + 1) for other in range(num_top)),
    )
