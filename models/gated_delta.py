"""Gated delta net: linear attention whose memory is updated by the gated delta rule."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxserve.api.caches import Recurrent, StateArray
from jaxserve.layers.causal_conv import causal_conv
from jaxserve.layers.delta_rule import DeltaInputs, gated_delta_rule
from jaxserve.layers.linear import einsum
from jaxserve.layers.recurrence import CHUNK
from jaxserve.layers.recurrent import States, WholeSequence
from jaxserve.models.config import ModelConfig
from jaxserve.models.declare import matrix, normal, ones, zeros
from jaxserve.models.forward import ForwardContext
from jaxserve.models.norm import RMSNorm
from jaxserve.models.parts import WithoutAttention

# Added to the squared length of queries and keys, as in the reference implementation.
_LENGTH_EPS = 1e-6


class GatedDeltaNet(nnx.Module):
    """Gated delta net (Yang et al., 2024, arXiv:2412.06464), as in Qwen3-Next.

    Queries, keys and values pass a short causal convolution; outputs are normalized per head and
    gated. Einsum letters as in decoder.py; h key head, r value head of a key head.
    """

    def __init__(self, config: ModelConfig, mixer: "GatedDelta") -> None:
        """Declare the projections, the convolution and the decay."""
        self.mixer = mixer
        d, h, r = config.embed, mixer.key_heads, mixer.group
        # One matmul for all four: per key head its query, its key, its values and their gates.
        qkvz = mixer.conv_channels + r * mixer.value_dim
        self.qkvz = matrix("embed", embed=d, key_heads=h, qkvz=qkvz)
        # Per value head the rate of change and the step, from which the decay is computed.
        self.rates = matrix("embed", embed=d, key_heads=h, rates=2 * r)
        self.conv = normal(key_heads=h, channels=mixer.conv_channels, taps=mixer.taps)
        self.log_speed = zeros(key_heads=h, group=r)
        self.step_bias = ones(key_heads=h, group=r)
        self.norm = RMSNorm(config.norm_eps, head_dim=mixer.value_dim)
        self.out = matrix(
            "key_heads group head_dim", key_heads=h, group=r, head_dim=mixer.value_dim, embed=d
        )

    def __call__(
        self, x: Float[Array, "tokens embed"], cache: States | None, context: ForwardContext[Any]
    ) -> tuple[Float[Array, "tokens embed"], States]:
        """Mix the tokens of each sequence; return the update of the residual stream, and states."""
        mixer, rows, group = self.mixer, context.rows, self.mixer.group
        states = WholeSequence(mixer.cache, x.shape[0]) if cache is None else cache
        tail, memory = states.read()
        qkvz = einsum("td,dhc->thc", x, self.qkvz[...], rows)
        qkv, gates = jnp.split(qkvz, [mixer.conv_channels], axis=-1)
        qkv, tail = causal_conv(qkv, self.conv[...], tail, states)
        q, k, v = jnp.split(jax.nn.silu(qkv), [mixer.key_dim, 2 * mixer.key_dim], axis=-1)
        rates = einsum("td,dhc->thc", x, self.rates[...], rows, dtype=jnp.float32)
        rate, step = jnp.split(rates, 2, axis=-1)
        speed = jnp.exp(self.log_speed[...].astype(jnp.float32))
        inputs = DeltaInputs(
            q=_unit(q) * mixer.key_dim**-0.5,
            k=_unit(k),
            v=v.reshape(*v.shape[:2], group, mixer.value_dim),
            log_decay=-speed * jax.nn.softplus(step + self.step_bias[...]),
            rate=jax.nn.sigmoid(rate),
        )
        mixed, memory = gated_delta_rule(inputs, memory, states)
        normed = self.norm(mixed.astype(x.dtype))
        gated = (normed * jax.nn.silu(gates.astype(jnp.float32)).reshape(mixed.shape)).astype(
            x.dtype
        )
        gated = context.tap("heads", gated)
        out = einsum("thrk,hrkd->td", gated, self.out[...], rows)
        return out, states.write((tail, memory))


def _unit(x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
    """Scale the last dimension to length 1."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + _LENGTH_EPS)


@dataclass(frozen=True, kw_only=True)
class GatedDelta(WithoutAttention):
    """Description of a gated delta net; see models.config.Mixer.

    group: value heads per key head. taps: tokens that the convolution spans.
    """

    key_heads: int
    group: int
    key_dim: int
    value_dim: int
    taps: int
    module: Callable[[Any, "GatedDelta"], Any] = GatedDeltaNet

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution per key head: query, key and values."""
        return 2 * self.key_dim + self.group * self.value_dim

    @property
    def cache(self) -> Recurrent:
        """See Mixer: the last inputs of the convolution, and the memory."""
        heads, memory = self.key_heads, (self.group, self.key_dim, self.value_dim)
        return Recurrent(
            (
                StateArray(
                    (self.taps - 1, heads, self.conv_channels),
                    "float32",
                    ("taps", "key_heads", "channels"),
                ),
                StateArray(
                    (heads, *memory), "float32", ("key_heads", "group", "key_dim", "head_dim")
                ),
            )
        )

    def divides(self, devices: int) -> str | None:
        """See Mixer."""
        return f"key_heads ({self.key_heads})" if self.key_heads % devices else None

    def row_bytes(self, *, devices: int, itemsize: int) -> int:
        """See Mixer: projections, then float32 inputs and outputs of the convolution and the rule.

        The matrices of a block of chunks have a row of CHUNK numbers per token and head.
        """
        values = self.group * self.value_dim
        projected = (self.conv_channels + values) * itemsize
        computed = 4 * (3 * self.conv_channels + 2 * values + 2 * self.group * CHUNK)
        return self.key_heads // devices * (projected + computed)
