"""Sequences whose answers follow grammars: deferred sampling.

Such a sequence runs in steps like any other, but its token is not sampled in the step: the device
keeps the hidden state that the head would read. The token is sampled when its bitmask is ready, by
a program that runs between two steps, and is fed back like other tokens. While a step computes the
next position, the host reads the token, advances the matcher and computes the bitmask, so only
sequences with a grammar wait for one.

While such a sequence runs, sampling is deferred for all others too: the head is the largest matrix
of the model, and the device should read it once and not twice.

Forced tokens are appended without sampling, and computed together like those of a prompt.
"""

from collections.abc import Iterable

import msgspec
import numpy as np

from jaxserve.api.plan import DeferredSamplePlan, StepLimits
from jaxserve.api.request import FinishReason
from jaxserve.engine.scheduler import Scheduler
from jaxserve.engine.sequence import Sequence, SequenceGroup, Update
from jaxserve.grammar.matchers import MatcherPool


class Grammars:
    """The engine's sequences with grammars, and their matchers."""

    def __init__(self, scheduler: Scheduler, matchers: MatcherPool) -> None:
        self._scheduler = scheduler
        self._matchers = matchers
        self._sequences: list[Sequence] = []

    @property
    def is_busy(self) -> bool:
        """Whether any sequence follows a grammar."""
        return bool(self._sequences)

    @property
    def is_running(self) -> bool:
        """Whether any such sequence runs in steps."""
        return any(sequence.slot is not None for sequence in self._sequences)

    def begin(self, group: SequenceGroup) -> None:
        """Start matchers for the choices of a request, if it asks for a grammar."""
        params = group.request.params
        if params.structured_outputs is None:
            return
        # Forced tokens have no log-probabilities, and penalties do not count them.
        may_jump = params.logprobs is None and not params.adjusts_logits
        matchers = self._matchers.begin(
            params.structured_outputs,
            params.n,
            may_jump=may_jump,
            is_wanted=lambda: group.num_unfinished > 0,
        )
        for sequence, matcher in zip(group.sequences, matchers, strict=True):
            sequence.matcher = matcher
        self._sequences += group.sequences

    def wait(self, timeout_s: float, *, is_idle: bool) -> None:
        """Wait for the bitmasks of the latest tokens or, if the engine is idle, for any bitmask."""
        if is_idle:
            self._matchers.wait_for_any(timeout_s)
        else:
            self._matchers.wait(timeout_s)

    def follow(self) -> Iterable[Update]:
        """Append forced tokens and finish complete answers; yield the updates.

        The caller must handle an update before it asks for the next.
        """
        self._sequences = [each for each in self._sequences if not each.is_finished]
        for sequence in self._sequences:
            matcher = sequence.matcher
            assert matcher is not None
            tokens = matcher.next
            if tokens is None:
                continue
            taken: tuple[int, ...] = ()
            if tokens.forced:
                matcher.next = msgspec.structs.replace(tokens, forced=())
                taken = tuple(self._scheduler.force(sequence, tokens.forced))
                self._scheduler.finish_if_done(sequence, sequence.output_ids[-1])
            if not sequence.is_finished and tokens.bitmask is None:
                reason = FinishReason.STOP if tokens.error is None else FinishReason.ERROR
                param = f"structured_outputs.{matcher.params.kind}" if tokens.is_refused else None
                self._scheduler.finish(sequence, reason, error=tokens.error, error_param=param)
            if taken or sequence.is_finished:
                yield sequence, taken, None

    def plan_deferred(self, limits: StepLimits) -> DeferredSamplePlan | None:
        """Plan the deferred samples whose bitmasks are ready; None if there are none."""
        ready: list[Sequence] = []
        masks: list[np.ndarray | None] = []
        for sequence in self._scheduler.deferred:
            matcher = sequence.matcher
            if matcher is None:
                ready.append(sequence)
                masks.append(None)
            elif matcher.next is not None and matcher.next.bitmask is not None:
                ready.append(sequence)
                masks.append(matcher.next.bitmask)
        max_rows = limits.num_deferred_samples
        if not ready or max_rows == 0:
            return None
        return self._scheduler.plan_deferred(
            ready[:max_rows], masks[:max_rows], programs=limits.programs
        )

    def note(self, updates: Iterable[Update]) -> None:
        """Pass sampled tokens to their matchers."""
        steps = [
            (sequence.matcher, token_id)
            for sequence, token_ids, _ in updates
            if sequence.matcher is not None and not sequence.is_finished
            for token_id in token_ids
        ]
        if steps:
            self._matchers.advance(steps)
