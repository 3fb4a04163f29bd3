"""What a layer asks of attention, beside queries, keys and values."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float

from pallas_kernels.rotary import RopeTable


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["sinks", "k_scale", "v_scale", "rope"],
    meta_fields=["scale", "sliding_window", "soft_cap"],
)
@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Attention of one layer: a pytree whose arrays are traced and whose numbers are static.

    scale: factor of the scores. sliding_window: a token attends to itself and the
    `sliding_window - 1` tokens before it; None is no limit. soft_cap: a score s becomes
    soft_cap * tanh(s / soft_cap) (Gemma 2, arXiv:2408.00118).

    sinks: logits that join each head's softmax without a value (Xiao et al. 2023,
    arXiv:2309.17453). k_scale, v_scale: a cache of float8_e4m3fn or int8 holds k / k_scale and
    v / v_scale, rounded and clipped; None is 1.

    rope: table by which attention rotates queries and keys. None where the layer has rotated them
    or they carry no position.
    """

    scale: float
    sliding_window: int | None = None
    soft_cap: float | None = None
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

        heads: that of arrays with an entry per head. tokens: that of arrays with a row per token.
        """
        by_name = {"sinks": heads, "k_scale": heads, "v_scale": heads, "rope": tokens}
        given = {name: p for name, p in by_name.items() if getattr(self, name) is not None}
        return replace(self, **given)
