"""Composition of a step: one token of every decoding sequence, and chunks of prompts."""

from collections.abc import Callable

from jaxserve.api.engine_config import SchedulerConfig
from jaxserve.engine.drafts import Drafts
from jaxserve.engine.memory import KVMemory
from jaxserve.engine.plan_builder import PlanBuilder
from jaxserve.engine.prefills import chunks
from jaxserve.engine.running import RunningSet
from jaxserve.engine.sequence import Sequence


class StepComposer:
    """Adds the rows of running sequences to steps, and allocates their pages.

    preempt: releases the slot and pages of a sequence and queues it again. clock: returns seconds.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        memory: KVMemory,
        running: RunningSet,
        drafts: Drafts | None,
        preempt: Callable[[Sequence], None],
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._memory = memory
        self._running = running
        self._drafts = drafts
        self._preempt = preempt
        self._clock = clock

    def add_decodes(self, builder: PlanBuilder, *, max_tokens: int) -> int:
        """Plan one token of every decoding sequence; return the tokens that they attend to.

        If no page is free, the sequences of lowest precedence are preempted. max_tokens: limit of
        the whole step.
        """
        drafts = self._drafts
        context = 0
        # Preemption shortens the list at its end, where sequences have no row yet.
        for sequence in self._running.decoding:
            length = sequence.length
            if length in (sequence.max_length, sequence.num_scheduled):
                continue  # its last token is being sampled, or its sampling is deferred
            if length <= sequence.capacity or self._extend(sequence):
                if drafts is None:
                    builder.add_decode(sequence)
                else:
                    # Leave room for one token of every decoding sequence after this one.
                    room = max_tokens - builder.num_tokens - len(self._running.decoding)
                    drafts.add_row(builder, sequence, max_tokens=room)
                context += length
        return context

    def add_prefills(self, builder: PlanBuilder, *, max_tokens: int, decode_context: int) -> None:
        """Plan chunks of prompts within the time and the `max_tokens` of the step.

        decode_context: tokens that the decoding sequences of the step attend to.
        """
        if builder.num_tokens == max_tokens or not self._running.prefilling:
            return
        shares = chunks(
            self._config,
            self._running.prefilling,
            max_tokens=max_tokens,
            num_planned=builder.num_tokens,
            num_decodes=builder.num_singles,
            decode_context=decode_context,
        )
        for sequence, num_tokens in shares:
            self._add_chunk(builder, sequence, num_tokens)

    def _extend(self, sequence: Sequence) -> bool:
        """Allocate a page for one more token; False if the sequence itself was preempted for it."""
        while not self._memory.extend(sequence, 1):
            victim = self._running.last
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _add_chunk(self, builder: PlanBuilder, sequence: Sequence, num_tokens: int) -> None:
        """Plan the next tokens of a prompt, at most `num_tokens`, and allocate their pages."""
        num_tokens = min(num_tokens, self._memory.max_stop(sequence) - sequence.num_scheduled)
        if num_tokens == 0:
            return  # a step in flight fills the pages that it may use at once
        has_pages = self._memory.extend(sequence, num_tokens)
        assert has_pages, "a reserved page is missing"
        if not sequence.is_assigned:
            builder.assign(sequence)
            if sequence.scheduled_s is None:
                sequence.scheduled_s = self._clock()
        builder.add_chunk(sequence, num_tokens)
        if sequence.is_decoding:
            self._running.begin_decoding(sequence)
