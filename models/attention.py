"""Attention module: projections, rotation, and the call of the attention function."""

from dataclasses import replace
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxserve.layers.linear import einsum
from jaxserve.models.config import GroupedQuery, ModelConfig
from jaxserve.models.declare import matrix, zeros
from jaxserve.models.forward import ForwardContext
from pallas_kernels.rotary import rotate


class Attention(nnx.Module):
    """Grouped-query attention; see GroupedQuery."""

    def __init__(self, config: ModelConfig, mixer: GroupedQuery) -> None:
        """Declare the projections, and the family's optional parameters."""
        self.mixer = mixer
        d, h, kv, k = config.embed, mixer.heads, mixer.kv_heads, mixer.head_dim
        # One matmul for all three: per KV head its queries, then its key, then its value. With an
        # output gate, each query is followed by its gate.
        qkv = mixer.group * (2 if mixer.output_gate else 1) + 2
        self.qkv = matrix("embed", embed=d, kv_heads=kv, qkv=qkv, head_dim=k)
        self.o = matrix("heads head_dim", heads=h, head_dim=k, embed=d)
        self.qkv_bias = zeros(kv_heads=kv, qkv=qkv, head_dim=k) if mixer.qkv_bias else None
        self.o_bias = zeros(embed=d) if mixer.output_bias else None
        self.q_norm = _qk_norm(config, mixer, heads=h)
        self.k_norm = _qk_norm(config, mixer, kv_heads=kv)
        self.sinks = zeros(heads=h) if mixer.sinks else None

    def __call__[Cache](
        self, x: Float[Array, "tokens embed"], cache: Cache, context: ForwardContext[Cache]
    ) -> tuple[Float[Array, "tokens embed"], Cache]:
        """Attend over `x`; return the update of the residual stream, and the cache."""
        rows, tap = context.rows, context.tap
        qkv = plus(einsum("td,dgpk->tgpk", x, self.qkv[...], rows), self.qkv_bias)
        q = qkv[:, :, :-2].reshape(x.shape[0], self.mixer.heads, -1, qkv.shape[-1])
        q, gate = q[:, :, 0], q[:, :, 1:]
        k, v = qkv[:, :, -2], qkv[:, :, -1]
        if self.mixer.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.mixer.rope is not None:
            table = context.rotation(self.mixer.rope, self.mixer.head_dim)
            q, k = rotate(q, table), rotate(k, table)
        if self.mixer.temperature is not None:
            q *= self.mixer.temperature.at(context.positions)[:, None, None].astype(q.dtype)
        spec = self.mixer.spec
        if self.sinks is not None:
            spec = replace(spec, sinks=self.sinks[...])
        mixed, cache = context.attend(tap("q", q), tap("k", k), tap("v", v), cache, spec)
        if self.mixer.output_gate:
            mixed = mixed * jax.nn.sigmoid(gate[:, :, 0])
        mixed = tap("heads", mixed)
        return plus(einsum("thk,hkd->td", mixed, self.o[...], rows), self.o_bias), cache


def _qk_norm(config: ModelConfig, mixer: GroupedQuery, **heads: int) -> Any:
    """Return a norm of queries or keys, with the axis of `heads` if they are normalized jointly."""
    if not mixer.qk_norm:
        return None
    joint = heads if mixer.joint_qk_norm else {}
    return config.norm(config.norm_eps, **joint, head_dim=mixer.head_dim)


def plus(x: jax.Array, bias: nnx.Param[Array] | None) -> jax.Array:
    """Add a bias, if there is one."""
    return x if bias is None else x + bias[...]
