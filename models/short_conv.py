"""Gated short convolution, the mixer of LFM2 (Liquid AI, 2025, arXiv:2511.23404)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from jaxserve.api.caches import Recurrent, StateArray
from jaxserve.layers.causal_conv import causal_conv
from jaxserve.layers.linear import einsum
from jaxserve.layers.recurrent import States, WholeSequence
from jaxserve.models.attention import plus
from jaxserve.models.config import ModelConfig
from jaxserve.models.declare import matrix, normal, zeros
from jaxserve.models.forward import ForwardContext
from jaxserve.models.parts import WithoutAttention


class ShortConvolution(nnx.Module):
    """A causal convolution of a few tokens, with gates before and after it; see ShortConv.

    Einsum letters as in decoder.py; c channel.
    """

    def __init__(self, config: ModelConfig, mixer: "ShortConv") -> None:
        """Declare the projections and the convolution."""
        self.mixer = mixer
        d, channels, bias = config.embed, mixer.channels, mixer.bias
        # The gate before, the gate after, and the values.
        self.gates_value = matrix("embed", embed=d, gates_value=3, conv_channels=channels)
        self.conv = normal(conv_channels=channels, taps=mixer.taps)
        self.out = matrix("conv_channels", conv_channels=channels, embed=d)
        self.gates_value_bias = zeros(gates_value=3, conv_channels=channels) if bias else None
        self.conv_bias = zeros(conv_channels=channels) if bias else None
        self.out_bias = zeros(embed=d) if bias else None

    def __call__(
        self, x: Float[Array, "tokens embed"], cache: States | None, context: ForwardContext[Any]
    ) -> tuple[Float[Array, "tokens embed"], States]:
        """Mix the tokens of each sequence; return the update of the residual stream, and states."""
        rows = context.rows
        states = WholeSequence(self.mixer.cache, x.shape[0]) if cache is None else cache
        (tail,) = states.read()
        projected = einsum("td,dpc->tpc", x, self.gates_value[...], rows)
        projected = plus(projected, self.gates_value_bias)
        before, after, value = (projected[:, i] for i in range(3))
        mixed, tail = causal_conv(before * value, self.conv[...], tail, states)
        mixed = plus(mixed, self.conv_bias).astype(x.dtype)
        gated = context.tap("heads", after * mixed)
        out = plus(einsum("tc,cd->td", gated, self.out[...], rows), self.out_bias)
        return out, states.write((tail,))


@dataclass(frozen=True, kw_only=True)
class ShortConv(WithoutAttention):
    """Description of a gated short convolution; see models.config.Mixer.

    channels: width of the convolution. taps: tokens that it spans. bias: whether the projections
    and the convolution have biases.
    """

    channels: int
    taps: int
    bias: bool = False
    module: Callable[[Any, "ShortConv"], Any] = ShortConvolution

    @property
    def cache(self) -> Recurrent:
        """See Mixer: the last inputs of the convolution."""
        shape = (self.taps - 1, self.channels)
        return Recurrent((StateArray(shape, "float32", ("taps", "conv_channels")),))

    def divides(self, devices: int) -> str | None:
        """See Mixer."""
        return f"conv_channels ({self.channels})" if self.channels % devices else None

    def row_bytes(self, *, devices: int, itemsize: int) -> int:
        """See Mixer: projections, then float32 inputs and outputs of the convolution."""
        return self.channels // devices * (4 * itemsize + 3 * 4)
