"""The sequences whose answers follow grammars.

Such a sequence takes part in steps like any other, but that its token is not drawn in the step: the
device holds what the head would read. The token is drawn as soon as its mask is there, by a program
of its own between two steps, and is fed back as other tokens are. So while a step computes the next
position, the last draw is read, the matcher moves on, and the mask is computed: only sequences with
a grammar ever wait for one.

While any of them runs, the other sequences are held too, and drawn with them: the model's head is
the largest of its matrices, and the device is to read it once and not in step and draw.

Where a grammar forces tokens, they are appended at once, without a draw, and computed together as
those of a prompt are.
"""

from collections.abc import Iterable

import msgspec
import numpy as np

from jaxserve.api.plan import DrawPlan
from jaxserve.api.request import FinishReason
from jaxserve.engine.scheduler import Scheduler
from jaxserve.engine.sequence import Sequence, SequenceGroup, Update
from jaxserve.grammar.walks import Walks


class Grammars:
    """Leads sequences by their grammars; part of an engine, on its thread."""

    def __init__(self, scheduler: Scheduler, walks: Walks) -> None:
        self._scheduler = scheduler
        self._walks = walks
        self._sequences: list[Sequence] = []

    @property
    def is_busy(self) -> bool:
        """Whether any sequence follows a grammar."""
        return bool(self._sequences)

    @property
    def is_running(self) -> bool:
        """Whether any that does takes part in steps."""
        return any(sequence.slot is not None for sequence in self._sequences)

    def begin(self, group: SequenceGroup) -> None:
        """Lead the choices of a request from now on, if it asks for a grammar."""
        params = group.request.params
        if params.structured_outputs is None:
            return
        # What was forced has no log-probabilities, and is not counted where logits are adjusted.
        may_jump = params.logprobs is None and not params.adjusts_logits
        walks = self._walks.begin(
            params.structured_outputs,
            params.n,
            may_jump=may_jump,
            is_wanted=lambda: group.num_unfinished > 0,
        )
        for sequence, walk in zip(group.sequences, walks, strict=True):
            sequence.walk = walk
        self._sequences += group.sequences

    def wait(self, timeout_s: float, *, is_idle: bool) -> None:
        """Wait for moves: those of the last draw, or any, if there is nothing else to do."""
        if is_idle:
            self._walks.wait_for_any(timeout_s)
        else:
            self._walks.wait(timeout_s)

    def follow(self) -> Iterable[Update]:
        """Do what the grammars have said since this was called last; yield what changed.

        An update is to be told before the next one is asked for.
        """
        self._sequences = [each for each in self._sequences if not each.is_finished]
        for sequence in self._sequences:
            walk = sequence.walk
            assert walk is not None
            move = walk.move
            if move is None:
                continue
            if move.forced:
                walk.move = msgspec.structs.replace(move, forced=())
                for token_id in self._scheduler.force(sequence, move.forced):
                    yield sequence, token_id, None
                self._scheduler.finish_if_done(sequence, sequence.output_ids[-1])
            if not sequence.is_finished and move.mask is None:
                reason = FinishReason.STOP if move.error is None else FinishReason.ERROR
                param = f"structured_outputs.{walk.params.kind}" if move.is_refused else None
                self._scheduler.finish(sequence, reason, error=move.error, error_param=param)
            if sequence.is_finished:
                yield sequence, None, None

    def plan_draw(self, max_rows: int) -> DrawPlan | None:
        """Plan to draw the tokens that are held and may be drawn now; None if there are none."""
        ready: list[Sequence] = []
        masks: list[np.ndarray | None] = []
        for sequence in self._scheduler.held:
            walk = sequence.walk
            if walk is None:
                ready.append(sequence)
                masks.append(None)
            elif walk.move is not None and walk.move.mask is not None:
                ready.append(sequence)
                masks.append(walk.move.mask)
        if not ready or max_rows == 0:
            return None
        return self._scheduler.draw(ready[:max_rows], masks[:max_rows])

    def note(self, updates: Iterable[Update]) -> None:
        """Take note of the tokens that were drawn."""
        steps = [
            (sequence.walk, token_id)
            for sequence, token_id, _ in updates
            if sequence.walk is not None and token_id is not None and not sequence.is_finished
        ]
        if steps:
            self._walks.advance(steps)
