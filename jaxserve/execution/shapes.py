"""The shapes a step is compiled for: all that compilation varies by, and few by construction."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum

from jaxserve.api.plan import StepLimits
from jaxserve.errors import ConfigError

# The first shape of an accelerator, in tokens: its step takes little longer than to read the
# weights, and it has room for every sequence and for useful pieces of prompts.
_FIRST_TOKENS = 512


class Variant(IntEnum):
    """How much a step can do after its logits; each can do all that the one before can.

    NONE draws nothing. GREEDY takes the most likely token. SAMPLE draws from the filtered
    distribution. FULL adjusts logits by what a slot remembers and reports log-probabilities.
    SCORE also gives the log-probabilities of prompt tokens. POOL stands by itself: no logits, but
    prompts' vectors.

    On accelerators there is a program for each, and a step runs the least that does. On CPUs,
    where a branch costs nothing and a program costs seconds of compilation, there is one program
    of each size, which branches to what the step needs when it runs.
    """

    NONE = 0
    GREEDY = 1
    SAMPLE = 2
    FULL = 3
    SCORE = 4
    POOL = 5


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


@dataclass(frozen=True, slots=True)
class DrawShape:
    """Rows of a compiled draw, padding included. It branches to the least variant that does."""

    rows: int

    @property
    def name(self) -> str:
        """A word for it, within one engine."""
        return f"draw-{self.rows}"


@dataclass(frozen=True, slots=True)
class ShapeTable:
    """The shapes an engine may use, in the order in which they are best made.

    Decode steps are padded to the next of a few numbers of sequences, steps with longer rows to
    the next of a few numbers of tokens. Between two sizes lies a factor of 2. On CPUs it is 1.5
    or less between decodes of more than 16, which take a CPU nearly as long as they are many, and
    4 between those with longer rows: steps are filled (docs/scheduling.md), and programs cost
    seconds to compile there.

    The first shape alone serves every request, in steps within `limits`; each of the others makes
    some steps smaller, or larger ones possible. branches: whether programs branch when they run to
    what a step needs, so that one variant of each size is enough. draws: the largest first.
    """

    shapes: tuple[StepShape, ...]
    branches: bool
    draws: tuple[DrawShape, ...] = ()
    # In order of preference, for those that fit.
    _sorted: tuple[StepShape, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        preference = sorted(self.shapes, key=lambda s: (s.tokens, not s.is_decode, s.variant))
        object.__setattr__(self, "_sorted", tuple(preference))

    @staticmethod
    def plan(
        *, max_num_seqs: int, max_num_batched_tokens: int, pages: int, platform: str
    ) -> "ShapeTable":
        """Return every shape of an engine with these limits; raises ConfigError."""
        if max_num_batched_tokens < max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens must be at least max_num_seqs ({max_num_seqs}),"
                f" got {max_num_batched_tokens}"
            )
        is_cpu = platform == "cpu"
        singles = _sizes_up(8, max_num_seqs, factor=2)
        largest = max(max_num_batched_tokens, 2 * max_num_seqs)
        if is_cpu:
            singles = sorted({1, *singles, *(3 * size // 4 for size in singles if size > 16)})
        decode = [(size, size) for size in singles]
        mixed = [
            (tokens, min(max_num_seqs, tokens // 2))
            for tokens in _sizes_down(16, largest, factor=4 if is_cpu else 2)
        ]
        draws = tuple(DrawShape(rows) for rows in reversed(singles))

        def shapes(sizes: list[tuple[int, int]], *variants: Variant) -> list[StepShape]:
            return [StepShape(*size, pages, variant) for size in sizes for variant in variants]

        if is_cpu:
            scored = shapes(mixed, Variant.SCORE)
            full = shapes(decode, Variant.FULL)
            return ShapeTable((scored[0], *full, *scored[1:]), branches=True, draws=draws)
        # Prompts are scored, which is rare, in two sizes only.
        first = next((size for size in mixed if size[0] >= _FIRST_TOKENS), mixed[-1])
        often = (Variant.GREEDY, Variant.SAMPLE)
        ordered = [
            *shapes([first], Variant.SCORE),
            *shapes(decode, *often),
            *shapes(mixed, *often),
            *shapes(mixed[-1:], Variant.SCORE),
            *shapes(decode, Variant.FULL),
            *shapes(mixed, Variant.FULL),
            *shapes(decode, Variant.NONE),
        ]
        return ShapeTable(tuple(dict.fromkeys(ordered)), branches=False, draws=draws)

    @staticmethod
    def plan_pooling(
        *, max_num_seqs: int, max_num_batched_tokens: int, pages: int, longest_row: int = 1
    ) -> "ShapeTable":
        """Return every shape of an engine that pools, the first with room for `longest_row` tokens.

        Nothing decodes, so that on CPUs, too, there are programs enough to pad by 2 at most.
        """
        largest = max(max_num_batched_tokens, 2 * max_num_seqs)
        sizes = _sizes_down(16, largest, factor=2)
        shapes = [
            StepShape(tokens, min(max_num_seqs, tokens // 2), pages, Variant.POOL)
            for tokens in sizes
        ]
        first = next(i for i, tokens in enumerate(sizes) if tokens >= longest_row)
        return ShapeTable((shapes[first], *shapes[first + 1 :], *shapes[:first]), branches=False)

    @property
    def pools(self) -> bool:
        """Whether the steps pool prompts and draw no tokens."""
        return self.shapes[0].variant is Variant.POOL

    def only(self, is_made: Callable[[StepShape | DrawShape], bool]) -> "ShapeTable":
        """Return the table of those of the shapes for which `is_made` is true."""
        return replace(
            self,
            shapes=tuple(filter(is_made, self.shapes)),
            draws=tuple(filter(is_made, self.draws)),
        )

    @property
    def limits(self) -> StepLimits:
        """What a step may have so that there is a shape for it, whatever its rows ask for."""
        largest = max(
            (shape for shape in self.shapes if shape.variant >= Variant.SCORE),
            key=lambda shape: shape.tokens,
        )
        return StepLimits(
            num_tokens=largest.tokens,
            num_sequences=largest.sequences,
            num_draws=max((draw.rows for draw in self.draws), default=0),
        )

    def choose(self, row_lengths: list[int], variant: Variant) -> StepShape:
        """Return the smallest shape for rows of these numbers of tokens that can do `variant`."""
        num_tokens, num_sequences = sum(row_lengths), len(row_lengths)
        return next(
            shape
            for shape in self._sorted
            if shape.tokens >= num_tokens
            and shape.sequences >= num_sequences
            and shape.variant >= variant
            and (num_tokens == num_sequences or not shape.is_decode)
        )

    def choose_draw(self, num_rows: int) -> DrawShape:
        """Return the smallest draw for so many rows."""
        return min(
            (draw for draw in self.draws if draw.rows >= num_rows), key=lambda draw: draw.rows
        )


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
