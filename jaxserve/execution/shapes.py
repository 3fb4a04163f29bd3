"""The shapes a step is compiled for: all that compilation varies by, and few by construction."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntFlag

from jaxserve.api.plan import StepLimits
from jaxserve.errors import ConfigError

# The first shape of an accelerator, in tokens: its step takes little longer than to read the
# weights, and it has room for every sequence and for useful pieces of prompts.
_FIRST_TOKENS = 512

# The smallest step with longer rows, in tokens. An accelerator computes 100 tokens and more in the
# time in which it reads the weights, so a smaller step would be no faster.
_SMALLEST_MIXED = {"cpu": 16, "gpu": 128, "tpu": 128}


class Feature(IntFlag):
    """What a program does with hidden states. A step needs some; its program covers them.

    TOKENS: take the most likely token. RANDOM: sample from the filtered distribution. ADJUST:
    adjust logits by what a slot remembers. LOGPROBS: report log-probabilities of sampled tokens,
    PROMPT_LOGPROBS of prompt tokens. DRAFTS: verify drafted tokens, so that a row yields several.
    VECTORS: pool prompts into vectors; stands by itself.
    """

    TOKENS = 1
    RANDOM = 2
    ADJUST = 4
    LOGPROBS = 8
    PROMPT_LOGPROBS = 16
    DRAFTS = 32
    VECTORS = 64


NOTHING = Feature(0)
GREEDY = Feature.TOKENS
SAMPLE = GREEDY | Feature.RANDOM
FULL = SAMPLE | Feature.ADJUST | Feature.LOGPROBS
SCORE = FULL | Feature.PROMPT_LOGPROBS
POOL = Feature.VECTORS

_WORDS = {GREEDY: "greedy", SAMPLE: "sample", FULL: "full", SCORE: "score", POOL: "pool"}


@dataclass(frozen=True, slots=True)
class StepShape:
    """Rows of tokens, sequences and page table columns of a compiled step, padding included.

    branches: whether it chooses at run time the least of its features that a step needs. Otherwise
    it always does all of them.
    """

    tokens: int
    sequences: int
    pages: int
    features: Feature
    branches: bool = False

    @property
    def name(self) -> str:
        """A word for it, within one engine: pages are the same in all its shapes."""
        kind = f"decode-{self.sequences}" if self.is_decode else f"{self.tokens}x{self.sequences}"
        words = _WORDS.get(self.features) or "+".join(
            feature.name.lower() for feature in self.features if feature.name
        )
        return f"{kind}-{words}"

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
    """Rows of a compiled draw, padding included. It branches to the least features needed."""

    rows: int

    @property
    def name(self) -> str:
        """A word for it, within one engine."""
        return f"draw-{self.rows}"


@dataclass(frozen=True, slots=True)
class ShapeTable:
    """The shapes an engine may use, in the order in which they are best compiled.

    Decode steps are padded to the next of a few numbers of sequences, steps with longer rows to
    the next of a few numbers of tokens. Between two sizes lies a factor of 2. On CPUs it is 1.5
    or less between decodes of more than 16, which take a CPU nearly as long as they are many, and
    4 between steps with longer rows, where products leave out rows of padding.

    A program that branches covers every feature, so there is one of each size. An accelerator has
    a second one for decodes that sample greedily: it is a single graph without a branch.

    The first shape has every feature and room for useful pieces of prompts, so that an engine can
    serve anything with it alone, in small steps if need be. draws: the largest first.
    """

    shapes: tuple[StepShape, ...]
    draws: tuple[DrawShape, ...] = ()
    # Those that cover the features a step needs, in order of preference; filled as steps need them.
    _covering: dict[Feature, tuple[StepShape, ...]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

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
        drawn = _sizes_up(16, max_num_seqs, factor=4)
        drawn = singles if is_cpu else _sizes_up(16, max_num_seqs, factor=4)
        largest = max(max_num_batched_tokens, 2 * max_num_seqs)
        if is_cpu:
            singles = sorted({1, *singles, *(3 * size // 4 for size in singles if size > 16)})
            drawn = singles
        mixed = [
            StepShape(tokens, min(max_num_seqs, tokens // 2), pages, SCORE, branches=True)
            for tokens in _sizes_down(_SMALLEST_MIXED[platform], largest, factor=4 if is_cpu else 2)
        ]
        greedy = [] if is_cpu else [StepShape(size, size, pages, GREEDY) for size in singles]
        full = [StepShape(size, size, pages, FULL, branches=True) for size in singles]
        least = 0 if is_cpu else _FIRST_TOKENS
        first = next((shape for shape in mixed if shape.tokens >= least), mixed[-1])
        ordered = dict.fromkeys((first, *greedy, *full, *mixed))
        return ShapeTable(tuple(ordered), draws=tuple(map(DrawShape, reversed(drawn))))

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
            StepShape(tokens, min(max_num_seqs, tokens // 2), pages, POOL) for tokens in sizes
        ]
        first = next(i for i, tokens in enumerate(sizes) if tokens >= longest_row)
        return ShapeTable((shapes[first], *shapes[first + 1 :], *shapes[:first]))

    @property
    def pools(self) -> bool:
        """Whether the steps pool prompts and draw no tokens."""
        return Feature.VECTORS in self.shapes[0].features

    def only(self, is_made: Callable[[StepShape | DrawShape], bool]) -> "ShapeTable":
        """Return the table of those of the shapes for which `is_made` is true."""
        return replace(
            self,
            shapes=tuple(filter(is_made, self.shapes)),
            draws=tuple(filter(is_made, self.draws)),
        )

    @property
    def limits(self) -> StepLimits:
        """Limits within which every step has a shape, whatever features it needs."""
        largest = max(
            (shape for shape in self.shapes if shape.features == self.shapes[0].features),
            key=lambda shape: shape.tokens,
        )
        return StepLimits(
            num_tokens=largest.tokens,
            num_sequences=largest.sequences,
            num_draws=max((draw.rows for draw in self.draws), default=0),
        )

    def choose(self, row_lengths: list[int], needs: Feature) -> StepShape:
        """Return the smallest shape for rows of these numbers of tokens that covers `needs`."""
        num_tokens, num_sequences = sum(row_lengths), len(row_lengths)
        covering = self._covering.get(needs)
        if covering is None:
            covering = self._covering[needs] = self._sorted(needs)
        return next(
            shape
            for shape in covering
            if shape.tokens >= num_tokens
            and shape.sequences >= num_sequences
            and (num_tokens == num_sequences or not shape.is_decode)
        )

    def _sorted(self, needs: Feature) -> tuple[StepShape, ...]:
        """Return the shapes that cover `needs`, those that cost a step least first."""

        def cost(shape: StepShape) -> tuple[int, bool, int, int]:
            done = needs if shape.branches else shape.features
            return (shape.tokens, not shape.is_decode, done.bit_count(), shape.features.bit_count())

        return tuple(sorted((each for each in self.shapes if needs in each.features), key=cost))

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
