"""Construction of step plans."""

from jaxserve.api.plan import RowPlan, SlotAssignment, StepPlan
from jaxserve.engine.sequence import Sequence


class PlanBuilder:
    """Collects the rows of a step; single-token rows come first.

    defers_all: whether sampling is deferred for all rows, and not only for those with a grammar.
    programs: as in StepPlan.
    """

    def __init__(self, *, defers_all: bool = False, programs: int | None = None) -> None:
        self.defers_all = defers_all
        self._programs = programs
        self._singles: list[RowPlan] = []
        self._chunks: list[RowPlan] = []
        self._single_sequences: list[Sequence] = []
        self._chunk_sequences: list[Sequence] = []
        self._assignments: list[SlotAssignment] = []

    @property
    def num_singles(self) -> int:
        """Number of single-token rows so far."""
        return len(self._singles)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all rows so far."""
        return len(self._singles) + sum(row.num_tokens for row in self._chunks)

    @property
    def sequences(self) -> list[Sequence]:
        """Sequence of each row, in the order of the plan."""
        return self._single_sequences + self._chunk_sequences

    def assign(self, sequence: Sequence) -> None:
        """Add the slot assignment of a sequence that has just taken a slot."""
        assert sequence.slot is not None, sequence
        request = sequence.request
        sequence.is_assigned = True
        self._assignments.append(
            SlotAssignment(
                slot=sequence.slot,
                params=request.params,
                seed=sequence.seed,
                prompt_ids=request.prompt_ids,
                output_ids=tuple(sequence.output_ids),
                stop_ids=tuple(sorted(sequence.stop_ids)),
                bad_word_ids=request.bad_word_ids,
            )
        )

    def add_decode(self, sequence: Sequence) -> None:
        """Plan the next token of a running sequence, which must have a page for it."""
        # Hot path: called once per sequence and step.
        start = sequence.num_scheduled
        slot = sequence.slot
        assert slot is not None, sequence
        length = start + 1
        # A token that the host has not read yet is fed back on the device.
        is_known = length == sequence.num_prompt + len(sequence.output_ids)
        token_ids = (sequence.output_ids[-1],) if is_known else ()
        samples = sequence.matcher is None and not self.defers_all
        if sequence.table:
            row = RowPlan(
                slot=slot,
                start=start,
                num_tokens=1,
                token_ids=token_ids,
                table=tuple(sequence.table),
                samples=samples,
                is_deferred=not samples,
            )
            sequence.table.clear()
        else:
            row = RowPlan(
                slot=slot,
                start=start,
                num_tokens=1,
                token_ids=token_ids,
                samples=samples,
                is_deferred=not samples,
            )
        sequence.num_scheduled = length
        sequence.length = length + samples
        self._singles.append(row)
        self._single_sequences.append(sequence)

    def add_chunk(self, sequence: Sequence, num_tokens: int) -> None:
        """Plan the next known tokens of a running sequence, which must have pages for them."""
        assert sequence.slot is not None, sequence
        start = sequence.num_scheduled
        stop = start + num_tokens
        is_last = stop == sequence.length
        samples = is_last and sequence.matcher is None and not self.defers_all
        targets: tuple[int, ...] = ()
        if start + 1 < sequence.targets_stop:
            targets = sequence.request.prompt_ids[start + 1 : stop + 1]
        row = RowPlan(
            slot=sequence.slot,
            start=start,
            num_tokens=num_tokens,
            token_ids=sequence.tokens(start, stop),
            table=tuple(sequence.table),
            samples=samples,
            is_deferred=is_last and not samples,
            targets=targets,
        )
        sequence.table.clear()
        sequence.num_scheduled = stop
        if is_last:
            sequence.length += samples
            sequence.is_decoding = True
        rows, sequences = (
            (self._singles, self._single_sequences)
            if num_tokens == 1
            else (self._chunks, self._chunk_sequences)
        )
        rows.append(row)
        sequences.append(sequence)

    def add_drafts(self, sequence: Sequence, drafts: tuple[int, ...]) -> None:
        """Plan the last token of a running sequence, followed by draft tokens.

        All tokens of the sequence must be known, and it must have pages for the drafts.
        """
        assert sequence.slot is not None, sequence
        start, num_tokens = sequence.num_scheduled, 1 + len(drafts)
        self._chunks.append(
            RowPlan(
                slot=sequence.slot,
                start=start,
                num_tokens=num_tokens,
                token_ids=(*sequence.tokens(start, start + 1), *drafts),
                table=tuple(sequence.table),
                samples=num_tokens,
            )
        )
        sequence.table.clear()
        sequence.num_scheduled = sequence.length = start + num_tokens
        sequence.is_verifying = True
        self._chunk_sequences.append(sequence)

    def plan(self) -> StepPlan | None:
        """Return the plan, or None if there are no rows."""
        rows = (*self._singles, *self._chunks)
        if not rows:
            return None
        assignments = tuple(self._assignments)
        return StepPlan(rows=rows, assignments=assignments, programs=self._programs)
