"""The shapes a step is compiled for: all that compilation varies by, and few by construction."""

from dataclasses import dataclass
from enum import IntEnum

from jaxserve.errors import ConfigError


class Variant(IntEnum):
    """How much a step can do after its logits; each can do all that the one before can.

    GREEDY takes the most likely token. SAMPLE draws from the filtered distribution. FULL adjusts
    logits by what a slot remembers and reports log-probabilities. SCORE also gives the
    log-probabilities of prompt tokens.

    On accelerators there is a program for each, and a step runs the least that does. On CPUs,
    where a branch costs nothing and a program costs seconds of compilation, there are programs
    for FULL and SCORE only, which branch to what the step needs when they run.
    """

    GREEDY = 0
    SAMPLE = 1
    FULL = 2
    SCORE = 3


@dataclass(frozen=True, slots=True)
class StepShape:
    """Rows of tokens, sequences and page table columns of a compiled step, padding included."""

    tokens: int
    sequences: int
    pages: int
    variant: Variant

    @property
    def name(self) -> str:
        """A word for it, within one engine: pages are the same in all its shapes."""
        kind = f"decode-{self.sequences}" if self.is_decode else f"{self.tokens}x{self.sequences}"
        return f"{kind}-{self.variant.name.lower()}"

    @property
    def is_decode(self) -> bool:
        """Whether each sequence has one row: the shapes with as many rows as sequences."""
        return self.tokens == self.sequences

    @property
    def max_query_length(self) -> int:
        """Rows of one sequence at most."""
        return 1 if self.is_decode else self.tokens


class ShapeTable:
    """Every shape the engine may use, and which one a step takes.

    Decode steps are padded to the next of a few numbers of sequences, steps with longer rows to
    the next of a few numbers of tokens. Between two sizes lies a factor of 2 on accelerators and
    of 4 on CPUs, where a small model answers faster than one more program compiles. Prompts are
    scored, which is rare, in the largest shape only.
    """

    def __init__(
        self, *, max_num_seqs: int, max_num_batched_tokens: int, pages: int, platform: str
    ) -> None:
        if max_num_batched_tokens < max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens must be at least max_num_seqs ({max_num_seqs}),"
                f" got {max_num_batched_tokens}"
            )
        self._pages = pages
        self.branches = is_cpu = platform == "cpu"  # whether programs branch at run time
        factor = 4 if is_cpu else 2
        sizes = _sizes_up(8, max_num_seqs, factor=factor)
        self._decode = sorted({1, *sizes}) if is_cpu else sizes
        largest = max(max_num_batched_tokens, 2 * max_num_seqs)
        self._mixed = [
            (tokens, min(max_num_seqs, tokens // 2))
            for tokens in _sizes_down(16, largest, factor=factor)
        ]

    def all(self) -> list[StepShape]:
        """Return every shape, simplest variant first, and within a variant smallest first."""
        sizes = [(size, size) for size in self._decode] + self._mixed
        first = Variant.FULL if self.branches else Variant.GREEDY
        shapes = [
            StepShape(tokens, sequences, self._pages, Variant(variant))
            for variant in range(first, Variant.SCORE)
            for tokens, sequences in sizes
        ]
        return [*shapes, StepShape(*self._mixed[-1], self._pages, Variant.SCORE)]

    def choose(self, row_lengths: list[int], variant: Variant) -> StepShape:
        """Return the smallest shape for rows of these numbers of tokens that can do `variant`."""
        num_tokens, num_sequences = sum(row_lengths), len(row_lengths)
        if self.branches:
            variant = max(variant, Variant.FULL)
        if variant is Variant.SCORE:
            return StepShape(*self._mixed[-1], self._pages, variant)
        if num_tokens == num_sequences:
            size = next(size for size in self._decode if size >= num_sequences)
            return StepShape(size, size, self._pages, variant)
        tokens, sequences = next(
            (tokens, sequences)
            for tokens, sequences in self._mixed
            if tokens >= num_tokens and sequences >= num_sequences
        )
        return StepShape(tokens, sequences, self._pages, variant)


def _sizes_up(first: int, last: int, *, factor: int) -> list[int]:
    """Sizes from `first` up by `factor`, ending in `last`."""
    sizes = []
    size = first
    while size < last:
        sizes.append(size)
        size *= factor
    return [*sizes, last]


def _sizes_down(first: int, last: int, *, factor: int) -> list[int]:
    """Sizes from `last` down by `factor`, none below `first` but for `last`, ascending."""
    sizes = [last]
    while sizes[-1] // factor >= first:
        sizes.append(sizes[-1] // factor)
    return sizes[::-1]
