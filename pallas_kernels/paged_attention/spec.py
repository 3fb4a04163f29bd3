"""Attention parameters of a layer, beside queries, keys and values."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float

from pallas_kernels.rotary import RopeTable


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["sinks", "k_scale", "v_scale", "rope"],
    meta_fields=["scale", "sliding_window", "soft_cap", "value_dim"],
)
@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Attention parameters of one layer: a pytree with traced arrays and static numbers.

    scale: factor of the scores. sliding_window: number of tokens that a token attends to, itself
    included; None is no limit. soft_cap: a score s becomes soft_cap * tanh(s / soft_cap) (Gemma 2,
    arXiv:2408.00118). value_dim: values are the first value_dim dimensions of the keys, as in
    multi-head latent attention (DeepSeek-V2, arXiv:2405.04434); None if there are separate values.

    sinks: one logit per head that takes part in the softmax but has no value (Xiao et al. 2023,
    arXiv:2309.17453). k_scale, v_scale: a cache of float8_e4m3fn or int8 stores k / k_scale and
    v / v_scale, rounded and clipped; None is 1. Values within the keys have k_scale.

    rope: table by which attention rotates queries and keys. None if the layer has already rotated
    them, or uses no rotary embeddings.
    """

    scale: float
    sliding_window: int | None = None
    soft_cap: float | None = None
    value_dim: int | None = None
    sinks: Float[Array, " heads"] | None = None
    k_scale: Float[Array, " kv_heads"] | None = None
    v_scale: Float[Array, " kv_heads"] | None = None
    rope: RopeTable | None = None

    def __post_init__(self) -> None:
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"scale must be positive and finite, got {self.scale}")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window must be at least 1, got {self.sliding_window}")
        if self.soft_cap is not None and not 0 < self.soft_cap < float("inf"):
            raise ValueError(f"soft_cap must be positive and finite, got {self.soft_cap}")

    def partitioned(self, *, heads: Any, tokens: Any) -> "AttentionSpec":
        """Return the spec with partition specs in place of arrays, for `shard_map`.

        heads: partition spec of arrays with one entry per head. tokens: of arrays with one row per
        token.
        """
        by_name = {"sinks": heads, "k_scale": heads, "v_scale": heads, "rope": tokens}
        given = {name: p for name, p in by_name.items() if getattr(self, name) is not None}
        return replace(self, **given)
