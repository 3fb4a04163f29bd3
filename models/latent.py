"""Multi-head latent attention (DeepSeek-V2, 2024, arXiv:2405.04434).

A token's cache is one latent, from which every head projects its keys and values, followed by one
rotated key that all heads share. The projections are absorbed: queries are projected into the space
of latents, attention runs over the latents themselves as a single key of which the value is a part,
and the results are projected to values afterwards. So the cache is read once for all heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxserve.api.caches import Latent
from jaxserve.layers.linear import einsum
from jaxserve.layers.rope import Rope, TemperatureScaling
from jaxserve.models.attention import plus
from jaxserve.models.config import ModelConfig
from jaxserve.models.declare import matrix, normal, zeros
from jaxserve.models.forward import ForwardContext
from pallas_kernels.paged_attention import AttentionConfig, AttentionSpec
from pallas_kernels.rotary import rotate


@dataclass(frozen=True, kw_only=True)
class MultiHeadLatent:
    """Attention whose keys and values are projections of one latent per token; see Mixer.

    nope_dim, rope_dim: dimensions of a head's query and key that are not rotated, and those that
    are. value_dim: dimensions of a head's value. kv_rank: dimensions of the latent. q_rank: inner
    dimensions of the queries' projection; None if it is a single matrix. norm_eps: epsilon of the
    norms of latents. bias: whether the projections of the residual stream have biases.
    temperature: growth of queries with their position. is_interleaved: whether checkpoints store
    the two dimensions of a rotated pair side by side.
    """

    module: Callable[[Any, "MultiHeadLatent"], Any]
    heads: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    kv_rank: int
    q_rank: int | None
    scale: float
    rope: Rope
    norm_eps: float
    bias: bool = False
    temperature: TemperatureScaling | None = None
    is_interleaved: bool = True

    sliding_window: ClassVar[None] = None

    @property
    def query_dim(self) -> int:
        """Dimensions of a head's query before absorption."""
        return self.nope_dim + self.rope_dim

    @property
    def latent_dim(self) -> int:
        """Dimensions of a token's cache: its latent and its rotated key."""
        return self.kv_rank + self.rope_dim

    @property
    def spec(self) -> AttentionSpec:
        """Attention parameters of the layer."""
        return AttentionSpec(scale=self.scale, value_dim=self.kv_rank)

    @property
    def cache(self) -> Latent:
        """See Mixer."""
        return Latent(latent_dim=self.latent_dim, value_dim=self.kv_rank)

    @property
    def stored(self) -> "MultiHeadLatent":
        """See Mixer."""
        return self

    def fitted(self, devices: int) -> "MultiHeadLatent":
        """See Mixer. Every device has the latents already."""
        del devices
        return self

    def divides(self, devices: int) -> str | None:
        """See Mixer."""
        return f"heads ({self.heads})" if self.heads % devices else None

    def attention(
        self, *, devices: int, page_size: int, dtype: str, cache_dtype: str
    ) -> AttentionConfig:
        """See Mixer."""
        return AttentionConfig(
            heads=self.heads // devices,
            kv_heads=1,
            head_dim=self.latent_dim,
            page_size=page_size,
            dtype=dtype,
            cache_dtype=cache_dtype,
            value_dim=self.kv_rank,
        )

    def row_bytes(self, *, devices: int, itemsize: int) -> int:
        """See Mixer: queries before and after absorption, results, values, and the latent."""
        of_head = self.query_dim + self.latent_dim + self.kv_rank + self.value_dim
        return (self.heads // devices * of_head + self.latent_dim) * itemsize

    def pair_flops(self, *, devices: int) -> int:
        """See Mixer."""
        return 2 * (self.heads // devices) * (self.latent_dim + self.kv_rank)

    def key_bytes(self, *, devices: int, itemsize: int) -> int:
        """See Mixer. Every device reads the latents."""
        del devices
        return self.latent_dim * itemsize


class LatentAttention(nnx.Module):
    """Multi-head latent attention with absorbed projections; see MultiHeadLatent.

    Einsum letters: n nope_dim, q query_dim, c latent or kv_rank, v value_dim, r q_rank.
    """

    def __init__(self, config: ModelConfig, mixer: MultiHeadLatent) -> None:
        """Declare the projections, and the family's optional parameters."""
        self.mixer = mixer
        d, h, rank = config.embed, mixer.heads, mixer.kv_rank
        if mixer.q_rank is None:
            self.q = matrix("embed", embed=d, heads=h, query_dim=mixer.query_dim)
        else:
            self.q_a = matrix("embed", embed=d, q_rank=mixer.q_rank)
            self.q_a_bias = zeros(q_rank=mixer.q_rank) if mixer.bias else None
            self.q_norm: Any = config.norm(mixer.norm_eps, q_rank=mixer.q_rank)
            self.q = matrix("q_rank", q_rank=mixer.q_rank, heads=h, query_dim=mixer.query_dim)
        self.kv_a = matrix("embed", embed=d, latent=mixer.latent_dim)
        self.kv_a_bias = zeros(latent=mixer.latent_dim) if mixer.bias else None
        self.kv_norm = config.norm(mixer.norm_eps, kv_rank=rank)
        self.k_b = normal(heads=h, nope_dim=mixer.nope_dim, kv_rank=rank)
        self.v_b = normal(heads=h, value_dim=mixer.value_dim, kv_rank=rank)
        self.o = matrix("heads value_dim", heads=h, value_dim=mixer.value_dim, embed=d)
        self.o_bias = zeros(embed=d) if mixer.bias else None

    def __call__[Cache](
        self, x: Float[Array, "tokens embed"], cache: Cache, context: ForwardContext[Cache]
    ) -> tuple[Float[Array, "tokens embed"], Cache]:
        """Attend over `x`; return the update of the residual stream, and the cache."""
        rows, tap, mixer = context.rows, context.tap, self.mixer
        table = context.rotation(mixer.rope, mixer.rope_dim)
        nope, turned = jnp.split(self._queries(x, context), (mixer.nope_dim,), axis=-1)
        absorbed = jnp.einsum("thn,hnc->thc", nope, self.k_b[...])
        q = jnp.concatenate([absorbed, rotate(turned, table)], axis=-1)
        if mixer.temperature is not None:
            q *= mixer.temperature.at(context.positions)[:, None, None].astype(q.dtype)
        projected = plus(einsum("td,dc->tc", x, self.kv_a[...], rows), self.kv_a_bias)
        latent, turned = jnp.split(projected[:, None], (mixer.kv_rank,), axis=-1)
        k = jnp.concatenate([self.kv_norm(latent), rotate(turned, table)], axis=-1)
        mixed, cache = context.attend(tap("q", q), tap("latent", k), None, cache, mixer.spec)
        mixed = tap("heads", jnp.einsum("thc,hvc->thv", mixed, self.v_b[...]))
        return plus(einsum("thv,hvd->td", mixed, self.o[...], rows), self.o_bias), cache

    def _queries[Cache](
        self, x: jax.Array, context: ForwardContext[Cache]
    ) -> Float[Array, "tokens heads query_dim"]:
        rows = context.rows
        if self.mixer.q_rank is None:
            return einsum("td,dhq->thq", x, self.q[...], rows)
        inner = plus(einsum("td,dr->tr", x, self.q_a[...], rows), self.q_a_bias)
        return einsum("tr,rhq->thq", self.q_norm(inner), self.q[...], rows)
