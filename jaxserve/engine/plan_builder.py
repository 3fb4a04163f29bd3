"""A step plan in the making."""

from typing import NamedTuple

from jaxserve.engine.sequence import Sequence
from jaxserve.plan import RowPlan, SlotAssignment, StepPlan


class Entry(NamedTuple):
    """A row, whose it is, and how often that sequence had been preempted when it was planned.

    The number tells at commit whether the sequence has left its slot since.
    """

    row: RowPlan
    sequence: Sequence
    num_preemptions: int


class PlanBuilder:
    """Collects the rows of a step under a budget of tokens, single tokens first."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._singles: list[Entry] = []
        self._chunks: list[Entry] = []
        self._assignments: list[SlotAssignment] = []

    @property
    def entries(self) -> list[Entry]:
        """The rows in the order of the plan."""
        return self._singles + self._chunks

    def assign(self, sequence: Sequence) -> None:
        """Tell the runner of a sequence that has just taken a slot."""
        assert sequence.slot is not None, sequence
        request = sequence.request
        self._assignments.append(
            SlotAssignment(
                slot=sequence.slot,
                params=request.params,
                seed=sequence.seed,
                prompt_ids=request.prompt_ids,
                output_ids=tuple(sequence.output_ids),
                stop_ids=tuple(sorted(sequence.eos_ids.union(request.params.stop_token_ids))),
                bad_word_ids=request.bad_word_ids,
            )
        )

    def add(self, sequence: Sequence) -> None:
        """Plan the next tokens of a running sequence, as many as budget and sequence have left.

        It must have the pages for all of them.
        """
        # The hot loop of the host: once per sequence and step.
        slot, num_awaited = sequence.slot, sequence.num_awaited
        assert slot is not None, sequence
        start = sequence.num_computed + sequence.num_in_flight
        num_tokens = min(sequence.length - start, self.budget)
        stop = start + num_tokens
        samples = stop == sequence.length
        new_pages: tuple[int, ...] = ()
        num_sent = sequence.num_sent_pages
        if num_sent < len(sequence.pages):
            new_pages = tuple(sequence.pages[num_sent:])
            sequence.num_sent_pages = len(sequence.pages)
        targets: tuple[int, ...] = ()
        if start + 1 < sequence.targets_stop:
            targets = sequence.request.prompt_ids[start + 1 : stop + 1]
        row = RowPlan(
            slot=slot,
            start=start,
            num_tokens=num_tokens,
            # An awaited token is the only one left to compute: it comes from the device.
            token_ids=() if num_awaited else sequence.tokens(start, stop),
            new_pages=new_pages,
            first_new_page=num_sent,
            samples=samples,
            targets=targets,
        )
        sequence.start(num_tokens, samples=samples)
        self.budget -= num_tokens
        entries = self._singles if num_tokens == 1 else self._chunks
        entries.append(Entry(row, sequence, sequence.num_preemptions))

    def plan(self) -> StepPlan:
        """Return what was collected."""
        rows = tuple([entry.row for entry in self.entries])
        return StepPlan(rows=rows, assignments=tuple(self._assignments))
