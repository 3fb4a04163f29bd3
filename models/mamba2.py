"""Mamba2: a state space model whose parameters depend on the token (arXiv:2405.21060)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxserve.api.caches import Recurrent, StateArray
from jaxserve.layers.causal_conv import causal_conv
from jaxserve.layers.linear import einsum
from jaxserve.layers.norm import rms_norm
from jaxserve.layers.recurrence import CHUNK
from jaxserve.layers.recurrent import States, WholeSequence
from jaxserve.layers.state_space import StateSpaceInputs, state_space
from jaxserve.models.attention import plus
from jaxserve.models.config import ModelConfig
from jaxserve.models.declare import matrix, normal, ones, zeros
from jaxserve.models.forward import ForwardContext
from jaxserve.models.parts import WithoutAttention


class Mamba2Mixer(nnx.Module):
    """Mamba2 (Dao and Gu, 2024, arXiv:2405.21060), as in Nemotron-H and Granite 4.

    Values and the vectors b and c of each group pass a short causal convolution; outputs are gated
    and normalized. Einsum letters as in decoder.py; g group, r head of a group, z gate and value.
    """

    def __init__(self, config: ModelConfig, mixer: "Mamba2") -> None:
        """Declare the projections, the convolution and the decay."""
        self.mixer, self.norm_eps = mixer, config.norm_eps
        d, heads, groups = config.embed, mixer.head_axes, mixer.group_axis
        values, state = mixer.head_dim, 2 * mixer.state_dim
        # Per head its gate and its value; per group b and c.
        self.gate_value = matrix("embed", embed=d, **heads, gate_value=2 * values)
        self.bc = matrix("embed", embed=d, **groups, bc=state)
        self.rate = matrix("embed", embed=d, **heads)
        self.out = matrix(f"{' '.join(heads)} head_dim", **heads, head_dim=values, embed=d)
        self.value_conv = normal(**heads, head_dim=values, taps=mixer.taps)
        self.bc_conv = normal(**groups, bc=state, taps=mixer.taps)
        self.value_conv_bias = zeros(**heads, head_dim=values) if mixer.conv_bias else None
        self.bc_conv_bias = zeros(**groups, bc=state) if mixer.conv_bias else None
        bias = mixer.bias
        self.gate_value_bias = zeros(**heads, gate_value=2 * values) if bias else None
        self.bc_bias = zeros(**groups, bc=state) if bias else None
        self.rate_bias = zeros(**heads) if bias else None
        self.out_bias = zeros(embed=d) if bias else None
        # Kept in float32, because errors of decays accumulate.
        self.log_speed = zeros("float32", **heads)
        self.step_bias = zeros("float32", **heads)
        self.skip = ones(**heads)
        self.norm_weight = ones(**heads, head_dim=values)

    def __call__(
        self, x: Float[Array, "tokens embed"], cache: States | None, context: ForwardContext[Any]
    ) -> tuple[Float[Array, "tokens embed"], States]:
        """Mix the tokens of each sequence; return the update of the residual stream, and states."""
        mixer, rows = self.mixer, context.rows
        states = WholeSequence(mixer.cache, x.shape[0]) if cache is None else cache
        value_tail, bc_tail, memory = states.read()
        projected = einsum("td,dgrz->tgrz", x, self.gate_value[...], rows)
        gate, value = jnp.split(plus(projected, self.gate_value_bias), 2, axis=-1)
        bc = plus(einsum("td,dgs->tgs", x, self.bc[...], rows), self.bc_bias)
        value, value_tail = causal_conv(value, self.value_conv[...], value_tail, states)
        bc, bc_tail = causal_conv(bc, self.bc_conv[...], bc_tail, states)
        value = jax.nn.silu(plus(value, self.value_conv_bias))
        b, c = jnp.split(jax.nn.silu(plus(bc, self.bc_conv_bias)), 2, axis=-1)
        step = einsum("td,dgr->tgr", x, self.rate[...], rows, dtype=jnp.float32)
        step = jax.nn.softplus(plus(step, self.rate_bias) + self.step_bias[...])
        rate = jnp.clip(step, mixer.least_step, mixer.most_step)
        log_decay = -jnp.exp(self.log_speed[...]) * rate
        inputs = StateSpaceInputs(value, b, c, log_decay, rate)
        mixed, memory = state_space(inputs, memory, states)
        mixed += self.skip[...].astype(jnp.float32)[..., None] * value
        normed = self._normed(mixed * jax.nn.silu(gate.astype(jnp.float32))).astype(x.dtype)
        heads = context.tap("heads", normed * self.norm_weight[...])
        out = plus(einsum("tgrv,grvd->td", heads, self.out[...], rows), self.out_bias)
        return out, states.write((value_tail, bc_tail, memory))

    def _normed(self, mixed: Float[Array, "tokens groups heads dim"]) -> Array:
        """Normalize the heads of each group together, or all of them."""
        first = 2 if self.mixer.norms_groups else 1
        return rms_norm(mixed, jnp.ones(mixed.shape[first:], jnp.float32), eps=self.norm_eps)


@dataclass(frozen=True, kw_only=True)
class Mamba2(WithoutAttention):
    """Description of a Mamba2 mixer; see models.config.Mixer.

    groups: groups of heads that share b and c. heads: heads of a group. state_dim: length of b and
    c. taps: tokens that the convolution spans. bias, conv_bias: whether projections and the
    convolution have biases. norms_groups: normalize each group by itself. least_step, most_step:
    limits of a token's step.

    Devices divide the groups. If there is only one, they divide its heads, and all have b and c.
    """

    groups: int
    heads: int
    head_dim: int
    state_dim: int
    taps: int
    bias: bool = False
    conv_bias: bool = True
    norms_groups: bool = False
    least_step: float = 0.0
    most_step: float = float("inf")
    module: Callable[[Any, "Mamba2"], Any] = Mamba2Mixer

    # Any: mypy checks dicts of keywords against every parameter.
    @property
    def head_axes(self) -> dict[str, Any]:
        """Name and size of the axes of groups and heads. Meshes shard `key_heads`."""
        if self.groups == 1:
            return {"group": 1, "key_heads": self.heads}
        return {"key_heads": self.groups, "group": self.heads}

    @property
    def group_axis(self) -> dict[str, Any]:
        """Name and size of the axis of groups."""
        name, size = next(iter(self.head_axes.items()))
        return {name: size}

    @property
    def cache(self) -> Recurrent:
        """See Mixer: the last inputs of the convolutions, and the memory."""
        groups, heads, taps = self.group_axis, self.head_axes, self.taps - 1
        return Recurrent(
            (
                StateArray(
                    (taps, *heads.values(), self.head_dim),
                    "float32",
                    ("taps", *heads, "head_dim"),
                ),
                StateArray(
                    (taps, *groups.values(), 2 * self.state_dim), "float32", ("taps", *groups, "bc")
                ),
                StateArray(
                    (*heads.values(), self.head_dim, self.state_dim),
                    "float32",
                    (*heads, "head_dim", "state_dim"),
                ),
            )
        )

    def divides(self, devices: int) -> str | None:
        """See Mixer."""
        word, count = ("heads", self.heads) if self.groups == 1 else ("groups", self.groups)
        return f"Mamba {word} ({count})" if count % devices else None

    def row_bytes(self, *, devices: int, itemsize: int) -> int:
        """See Mixer: projections, then float32 inputs and outputs of convolution and recurrence.

        The matrices of a block of chunks have a row of CHUNK numbers per token and head.
        """
        heads = self.groups * self.heads // devices
        groups = max(self.groups // devices, 1)
        values, state = heads * self.head_dim, 2 * groups * self.state_dim
        computed = 4 * (5 * values + 3 * state + 2 * heads * CHUNK)
        return (2 * values + state) * itemsize + computed
