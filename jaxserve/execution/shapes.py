"""Shapes that steps are compiled for, and the choice among them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntFlag

from jaxserve.api.plan import StepLimits
from jaxserve.errors import ConfigError

# Tokens of an accelerator's first shape. Its step takes little longer than reading the weights, and
# it has room for every sequence and for prefill chunks of useful size.
_FIRST_TOKENS = 512

# Tokens of the smallest mixed step, by platform. An accelerator computes at least 100 tokens while
# it reads the weights, so smaller steps would not be faster.
_SMALLEST_MIXED = {"cpu": 16, "gpu": 128, "tpu": 128}


class Feature(IntFlag):
    """Features of a program. A step needs some of them; its program must cover them.

    TOKENS: take the most likely token. RANDOM: sample from the filtered distribution. ADJUST:
    adjust logits by the slot state. LOGPROBS: report log-probabilities of sampled tokens.
    PROMPT_LOGPROBS: report log-probabilities of prompt tokens. DRAFTS: verify draft tokens, so that
    a row yields several. VECTORS: pool prompts into vectors; not combined with others.
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
    """Tokens, sequences and page table columns of a compiled step, padding included.

    branches: select the fewest sufficient features at run time. Otherwise the program always
    computes all of its features.
    """

    tokens: int
    sequences: int
    pages: int
    features: Feature
    branches: bool = False

    @property
    def name(self) -> str:
        """Name, unique within an engine, whose shapes all have the same pages."""
        kind = f"decode-{self.sequences}" if self.is_decode else f"{self.tokens}x{self.sequences}"
        words = _WORDS.get(self.features) or "+".join(
            feature.name.lower() for feature in self.features if feature.name
        )
        return f"{kind}-{words}"

    @property
    def is_decode(self) -> bool:
        """Whether each sequence has one row: as many tokens as sequences."""
        return self.tokens == self.sequences

    @property
    def max_query_length(self) -> int:
        """Maximum number of rows of one sequence."""
        return 1 if self.is_decode else self.tokens


@dataclass(frozen=True, slots=True)
class DeferredSampleShape:
    """Rows of deferred sampling, padding included. Branches like a step's program."""

    rows: int

    @property
    def name(self) -> str:
        """Name, unique within an engine."""
        return f"deferred-{self.rows}"


@dataclass(frozen=True, slots=True)
class ShapeTable:
    """Shapes that an engine may use, in order of compilation.

    Decode steps are padded to the next of a few numbers of sequences, mixed steps to the next of a
    few numbers of tokens. Sizes grow by a factor of 2. On CPUs, decodes of more than 16 sequences
    grow by 1.5 or less, because their time is nearly proportional to their number. Mixed steps on
    CPUs grow by 4, because matmuls skip padding rows.

    A branching program covers every feature, so each size needs only one. An accelerator has a
    second one for greedy decodes, a single graph without branches.

    The first shape has every feature and room for useful prefill chunks, so an engine can serve
    every request with it alone, if slowly. deferred: shapes of deferred sampling, largest first.
    """

    shapes: tuple[StepShape, ...]
    deferred: tuple[DeferredSampleShape, ...] = ()
    # Shapes that cover a set of features, in order of preference; filled on demand.
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
        deferred = singles if is_cpu else _sizes_up(16, max_num_seqs, factor=4)
        largest = max(max_num_batched_tokens, 2 * max_num_seqs)
        if is_cpu:
            singles = sorted({1, *singles, *(3 * size // 4 for size in singles if size > 16)})
            deferred = singles
        mixed = [
            StepShape(tokens, min(max_num_seqs, tokens // 2), pages, SCORE, branches=True)
            for tokens in _sizes_down(_SMALLEST_MIXED[platform], largest, factor=4 if is_cpu else 2)
        ]
        greedy = [] if is_cpu else [StepShape(size, size, pages, GREEDY) for size in singles]
        full = [StepShape(size, size, pages, FULL, branches=True) for size in singles]
        least = 0 if is_cpu else _FIRST_TOKENS
        first = next((shape for shape in mixed if shape.tokens >= least), mixed[-1])
        ordered = dict.fromkeys((first, *greedy, *full, *mixed))
        return ShapeTable(
            tuple(ordered), deferred=tuple(map(DeferredSampleShape, reversed(deferred)))
        )

    @staticmethod
    def plan_pooling(
        *, max_num_seqs: int, max_num_batched_tokens: int, pages: int, longest_row: int = 1
    ) -> "ShapeTable":
        """Return every shape of a pooling engine, the first with room for `longest_row` tokens.

        There are no decodes, so sizes grow by 2 on CPUs too.
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
        """Whether steps pool prompts instead of sampling tokens."""
        return Feature.VECTORS in self.shapes[0].features

    def only(self, is_made: Callable[[StepShape | DeferredSampleShape], bool]) -> "ShapeTable":
        """Return the table of the shapes for which `is_made` is true."""
        return replace(
            self,
            shapes=tuple(filter(is_made, self.shapes)),
            deferred=tuple(filter(is_made, self.deferred)),
        )

    @property
    def limits(self) -> StepLimits:
        """Limits within which every step has a shape, for any features."""
        largest = max(
            (shape for shape in self.shapes if shape.features == self.shapes[0].features),
            key=lambda shape: shape.tokens,
        )
        return StepLimits(
            num_tokens=largest.tokens,
            num_sequences=largest.sequences,
            num_deferred_samples=max((shape.rows for shape in self.deferred), default=0),
        )

    def choose(self, *, num_tokens: int, num_sequences: int, needs: Feature) -> StepShape:
        """Return the smallest shape for `num_sequences` rows with these tokens and needs."""
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
        """Return the shapes that cover `needs`, the cheapest first."""

        def cost(shape: StepShape) -> tuple[int, bool, int, int]:
            done = needs if shape.branches else shape.features
            return (shape.tokens, not shape.is_decode, done.bit_count(), shape.features.bit_count())

        return tuple(sorted((each for each in self.shapes if needs in each.features), key=cost))

    def choose_deferred(self, num_rows: int) -> DeferredSampleShape:
        """Return the smallest deferred-sampling shape for `num_rows` rows."""
        return min(
            (shape for shape in self.deferred if shape.rows >= num_rows),
            key=lambda shape: shape.rows,
        )


def _sizes_up(first: int, last: int, *, factor: int) -> list[int]:
    """Return sizes from `first` up by `factor`, ending with `last`."""
    sizes = []
    size = first
    while size < last:
        sizes.append(size)
        size *= factor
    return [*sizes, last]


def _sizes_down(first: int, last: int, *, factor: int) -> list[int]:
    """Return `last` divided by powers of `factor`, down to `first`, in ascending order."""
    sizes = [last]
    while sizes[-1] // factor >= first:
        sizes.append(sizes[-1] // factor)
    return sizes[::-1]
