"""Rotary position embeddings (Su et al., "RoFormer", 2021, arXiv:2104.09864) and their extensions.

A `Rope` defines the rotation frequency of each pair of a head's dimensions. The variants extend the
context beyond the trained length. They follow `modeling_rope_utils` of Hugging Face transformers
5.23, so that checkpoints behave the same. Frequencies are computed on the host in float64 and
compiled in as float32 constants.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from pallas_kernels.rotary import RopeTable


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Plain rotation ("default"): pair i turns by theta ** (-2i / rotary_dim) radians per token.

    partial_rotary_factor: share of a head's dimensions that are rotated, the first ones.
    """

    theta: float = 10000.0
    partial_rotary_factor: float = 1.0

    @property
    def magnitude(self) -> float:
        """Factor of cosines and sines: 1, except in YaRN."""
        return 1.0

    @property
    def score_factor(self) -> float:
        """Factor of the scores, in addition to `magnitude`; only DeepSeek's families apply it."""
        return 1.0

    def longest_context(self, max_position: int) -> int:
        """Return the maximum context of a model with `max_position` positions in its config.

        As in vLLM, variants with a factor multiply the positions by it.
        """
        return max_position

    def rotary_dim(self, head_dim: int) -> int:
        """Return the number of rotated dimensions of a head."""
        return int(head_dim * self.partial_rotary_factor)

    def inverse_frequencies(self, head_dim: int, *, length: int) -> NDArray[np.float64]:
        """Return radians per token, float64[head_dim / 2], for sequences of `length` tokens.

        head_dim: number of rotated dimensions.
        """
        del length  # only "dynamic" and "longrope" depend on it
        return _inverse_frequencies(self.theta, head_dim)


@dataclass(frozen=True, kw_only=True)
class LinearRope(Rope):
    """Position interpolation ("linear"): positions divided by `factor` (arXiv:2306.15595).

    is_included: whether the model's `max_position` counts the positions before the division, so
    that `factor` does not extend it.
    """

    factor: float
    is_included: bool = False

    def longest_context(self, max_position: int) -> int:
        """Return `factor` times the positions, unless it is included in them."""
        return max_position if self.is_included else _stretched(max_position, self.factor)

    def inverse_frequencies(self, head_dim: int, *, length: int) -> NDArray[np.float64]:
        """Return radians per token, float64[head_dim / 2]."""
        return super().inverse_frequencies(head_dim, length=length) / self.factor


@dataclass(frozen=True, kw_only=True)
class DynamicRope(Rope):
    """NTK-aware scaling ("dynamic"): the base grows with the length beyond `max_position`.

    It depends on the length of the sequence (emozilla, "Dynamically Scaled RoPE", 2023; described
    in arXiv:2309.00071, appendix B). Cached keys of a shorter length would be wrong, so an engine
    uses its maximum length for all sequences.
    """

    factor: float
    max_position: int

    def longest_context(self, max_position: int) -> int:
        """Return `factor` times the trained positions."""
        return _stretched(max_position, self.factor)

    def inverse_frequencies(self, head_dim: int, *, length: int) -> NDArray[np.float64]:
        """Return radians per token, float64[head_dim / 2], for sequences of `length` tokens."""
        stretch = self.factor * max(length, self.max_position) / self.max_position
        base = self.theta * (stretch - (self.factor - 1)) ** (head_dim / (head_dim - 2))
        return _inverse_frequencies(base, head_dim)


@dataclass(frozen=True, kw_only=True)
class Llama3Rope(Rope):
    """Llama 3.1's scaling ("llama3"): long wavelengths divided by `factor`, short ones kept.

    In between, where original_max_position / wavelength is from low_freq_factor to
    high_freq_factor, the two are interpolated linearly ("The Llama 3 Herd of Models",
    arXiv:2407.21783, and Meta's reference code). max_position in its configs already includes the
    factor.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int

    def inverse_frequencies(self, head_dim: int, *, length: int) -> NDArray[np.float64]:
        """Return radians per token, float64[head_dim / 2]."""
        kept = super().inverse_frequencies(head_dim, length=length)
        turns = self.original_max_position * kept / (2 * math.pi)
        share: NDArray[np.float64] = (turns - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        share = np.clip(share, 0.0, 1.0)
        return (1 - share) * kept / self.factor + share * kept


@dataclass(frozen=True, kw_only=True)
class YarnRope(Rope):
    """YaRN (Peng et al., 2023, arXiv:2309.00071): interpolation by parts, and attention scaling.

    Pairs that turn more than `beta_fast` times within original_max_position tokens are kept. Those
    that turn less than `beta_slow` times are divided by `factor`, with a linear ramp between.
    `truncate` rounds the ends of the ramp outwards to whole pairs. attention_factor: None means the
    paper's 0.1 ln(factor) + 1, or the ratio of the two `mscale`s (DeepSeek's form).
    """

    factor: float
    original_max_position: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def longest_context(self, max_position: int) -> int:
        """Return `factor` times the original positions; `max_position` is ignored."""
        del max_position
        return _stretched(self.original_max_position, self.factor)

    @property
    def magnitude(self) -> float:
        """Factor of cosines and sines; scores grow by its square."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._mscale(self.mscale) / self._mscale(self.mscale_all_dim)
        return self._mscale(1.0)

    @property
    def score_factor(self) -> float:
        """See Rope."""
        return self._mscale(self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0

    def inverse_frequencies(self, head_dim: int, *, length: int) -> NDArray[np.float64]:
        """Return radians per token, float64[head_dim / 2]."""
        kept = super().inverse_frequencies(head_dim, length=length)
        low = self._pair_turning(self.beta_fast, head_dim)
        high = self._pair_turning(self.beta_slow, head_dim)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        if low == high:
            high += 0.001  # avoid division by zero, as in transformers
        share: NDArray[np.float64] = np.clip(
            (np.arange(head_dim // 2) - low) / (high - low), 0.0, 1.0
        )
        return share * kept / self.factor + (1 - share) * kept

    def _pair_turning(self, turns: float, head_dim: int) -> float:
        """Return the fractional index of the pair that turns `turns` times in the context."""
        wavelength = self.original_max_position / (turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(self.theta))

    def _mscale(self, weight: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * weight * math.log(self.factor) + 1.0


@dataclass(frozen=True, kw_only=True)
class LongRope(Rope):
    """LongRoPE (Ding et al., 2024, arXiv:2402.13753): each pair is slowed by a factor of its own.

    long_factors apply to sequences of more than original_max_position tokens, short_factors to
    others, one for each pair. An engine uses its maximum length for all sequences (see
    DynamicRope). factor: extension of the context. attention_factor: None means
    sqrt(1 + ln(factor) / ln(original_max_position)).
    """

    long_factors: tuple[float, ...]
    short_factors: tuple[float, ...]
    factor: float
    original_max_position: int
    attention_factor: float | None = None

    @property
    def magnitude(self) -> float:
        """Factor of cosines and sines; scores grow by its square."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.factor <= 1:
            return 1.0
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original_max_position))

    def inverse_frequencies(self, head_dim: int, *, length: int) -> NDArray[np.float64]:
        """Return radians per token, float64[head_dim / 2], for sequences of `length` tokens."""
        kept = super().inverse_frequencies(head_dim, length=length)
        is_long = length > self.original_max_position
        factors = np.array(self.long_factors if is_long else self.short_factors)
        slowed: NDArray[np.float64] = kept / factors
        return slowed


@dataclass(frozen=True, kw_only=True)
class ProportionalRope(Rope):
    """Gemma 4's partial rotation ("proportional"): the slowest pairs do not turn.

    Pairs span the whole head, and keep the frequencies of full rotation divided by `factor`.
    partial_rotary_factor: share of the pairs that turn, the first ones.
    """

    factor: float = 1.0

    def rotary_dim(self, head_dim: int) -> int:
        """Return the head's dimensions: all are in pairs."""
        return head_dim

    def inverse_frequencies(self, head_dim: int, *, length: int) -> NDArray[np.float64]:
        """Return radians per token, float64[head_dim / 2]; zero for pairs that do not turn."""
        kept = super().inverse_frequencies(head_dim, length=length) / self.factor
        num_turning = int(self.partial_rotary_factor * head_dim // 2)
        return np.where(np.arange(len(kept)) < num_turning, kept, 0.0)


@dataclass(frozen=True, kw_only=True)
class TemperatureScaling:
    """Growth of queries with their position, as in Llama 4 (Nakanishi, 2025, arXiv:2501.19399).

    The query at a position is multiplied by
    1 + beta * ln(1 + floor(position / original_max_position)).
    """

    beta: float
    original_max_position: int

    def at(self, positions: Int[Array, " tokens"]) -> Float[Array, " tokens"]:
        """Return the float32 factor of the query at each position."""
        blocks = (positions // self.original_max_position).astype(jnp.float32)
        return 1 + self.beta * jnp.log1p(blocks)


def rotation(
    rope: Rope, head_dim: int, positions: Int[Array, " tokens"], *, length: int
) -> RopeTable:
    """Return float32 cosines and sines of every pair's angle at `positions`."""
    with jax.named_scope("rope_table"):
        rotary_dim = rope.rotary_dim(head_dim)
        frequencies = rope.inverse_frequencies(rotary_dim, length=length).astype(np.float32)
        # float32, because bfloat16 cannot represent position 257.
        angles = positions.astype(jnp.float32)[:, None] * frequencies
        return jnp.cos(angles) * rope.magnitude, jnp.sin(angles) * rope.magnitude


def _inverse_frequencies(base: float, head_dim: int) -> NDArray[np.float64]:
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    frequencies: NDArray[np.float64] = np.power(base, -exponents)
    return frequencies


def _stretched(positions: int, factor: float) -> int:
    # A factor computed as a quotient may round the product to just below an integer.
    return math.floor(positions * factor + 1e-6)
