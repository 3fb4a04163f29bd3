"""Modules of Gemma 4. Einsum letters are those of `decoder.py`; p is the width of layer inputs."""

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxserve.layers.activation import ACTIVATIONS
from jaxserve.layers.embed import embed
from jaxserve.layers.linear import Rows, einsum
from jaxserve.models.attention import plus
from jaxserve.models.config import DecoderConfig, LayerConfig
from jaxserve.models.declare import matrix, ones, zeros
from jaxserve.models.decoder import Block, Decoder
from jaxserve.models.forward import ForwardContext
from jaxserve.models.gemma4_text.description import (
    HIDDEN_ACT,
    Gemma4Config,
    Gemma4Experts,
    Gemma4Query,
)
from jaxserve.models.moe import Experts, Router
from jaxserve.models.norm import UnscaledRMSNorm
from pallas_kernels.rotary import rotate


class Gemma4Attention(nnx.Module):
    """Attention with normalized queries, keys and values; see Gemma4Query."""

    def __init__(self, config: DecoderConfig, mixer: Gemma4Query) -> None:
        """Declare the projections that the layer has."""
        self.mixer = mixer
        d, h, kv, k = config.embed, mixer.heads, mixer.kv_heads, mixer.head_dim
        has_keys, has_bias = mixer.shares is None, mixer.qkv_bias
        has_values = has_keys and not mixer.keys_are_values

        def keys() -> nnx.Param[Array]:
            return matrix("embed", embed=d, kv_heads=kv, head_dim=k)

        self.q = matrix("embed", embed=d, heads=h, head_dim=k)
        self.k = keys() if has_keys else None
        self.v = keys() if has_values else None
        self.o = matrix("heads head_dim", heads=h, head_dim=k, embed=d)
        self.q_bias = zeros(heads=h, head_dim=k) if has_bias else None
        self.k_bias = zeros(kv_heads=kv, head_dim=k) if has_bias and has_keys else None
        self.v_bias = zeros(kv_heads=kv, head_dim=k) if has_bias and has_values else None
        self.o_bias = zeros(embed=d) if mixer.output_bias else None
        self.q_norm: Any = config.norm(config.norm_eps, head_dim=k)
        self.k_norm: Any = config.norm(config.norm_eps, head_dim=k) if has_keys else None
        self.v_norm = UnscaledRMSNorm(config.norm_eps)

    def __call__[Cache](
        self, x: Float[Array, "tokens embed"], cache: Cache, context: ForwardContext[Cache]
    ) -> tuple[Float[Array, "tokens embed"], Cache]:
        """Attend over `x`; return the update of the residual stream, and the cache."""
        mixer, rows, tap = self.mixer, context.rows, context.tap
        assert mixer.rope is not None
        table = context.rotation(mixer.rope, mixer.head_dim)
        q = plus(einsum("td,dhk->thk", x, self.q[...], rows), self.q_bias)
        q = rotate(self.q_norm(q), table)
        if mixer.shares is None:
            # The last layer of a type that has keys is the one that later layers share.
            context.kept[mixer.sliding_window] = self._keys_and_values(x, context)
        k, v = context.kept[mixer.sliding_window]
        # A layer that shares a cache writes what the cache already has.
        mixed, cache = context.attend(tap("q", q), tap("k", k), tap("v", v), cache, mixer.spec)
        mixed = tap("heads", mixed)
        return plus(einsum("thk,hkd->td", mixed, self.o[...], rows), self.o_bias), cache

    def _keys_and_values(
        self, x: Float[Array, "tokens embed"], context: ForwardContext[Any]
    ) -> tuple[Array, Array]:
        assert self.k is not None
        assert self.mixer.rope is not None
        k = plus(einsum("td,dgk->tgk", x, self.k[...], context.rows), self.k_bias)
        v = k
        if self.v is not None:
            v = plus(einsum("td,dgk->tgk", x, self.v[...], context.rows), self.v_bias)
        table = context.rotation(self.mixer.rope, self.mixer.head_dim)
        return rotate(self.k_norm(k), table), self.v_norm(v)


class Gemma4Block(Block):
    """The usual block, then the layer's input through a gate, then a factor of the stream."""

    def __init__(self, config: Gemma4Config, layer: LayerConfig) -> None:
        """Declare the layer's parameters."""
        super().__init__(config, layer)
        d, p = config.embed, config.input_width
        self.scale = ones(scalar=1)
        self.input_gate = matrix("embed", embed=d, input=p) if p else None
        self.input_out = matrix("input", input=p, embed=d) if p else None
        self.input_norm: Any = config.norm(config.norm_eps, embed=d) if p else None

    def __call__[Cache](
        self, x: Float[Array, "tokens embed"], cache: Cache, context: ForwardContext[Cache]
    ) -> tuple[Float[Array, "tokens embed"], Cache]:
        """Return the residual stream after this layer, and the layer's cache."""
        x, cache = self.added(x, cache, context)
        if self.input_gate is not None:
            assert self.input_out is not None
            assert context.layer_input is not None
            with jax.named_scope("layer_input"):
                gate = einsum("td,dp->tp", x, self.input_gate[...], context.rows)
                gated = ACTIVATIONS[HIDDEN_ACT](gate) * context.layer_input
                x += self.input_norm(einsum("tp,pd->td", gated, self.input_out[...], context.rows))
        return context.tap("out", x * self.scale[...].astype(x.dtype)), cache


class Gemma4ExpertsBlock(Gemma4Block):
    """Gemma 4's block with experts, which read the residual stream itself."""

    def __init__(self, config: Gemma4Config, layer: LayerConfig) -> None:
        """Declare the layer's parameters."""
        super().__init__(config, layer)
        self.mlp_norm = None  # ParallelExperts has the norms


class ParallelExperts(nnx.Module):
    """norm(dense(norm(x))) + norm(experts(norm(x))); see Gemma4Experts."""

    def __init__(self, config: DecoderConfig, feed_forward: Gemma4Experts) -> None:
        """Declare the parts and their norms."""

        def norm() -> Any:
            return config.norm(config.norm_eps, embed=config.embed)

        dense = feed_forward.dense
        self.dense_norm = norm()
        self.dense: Any = dense.module(config, dense)
        self.dense_post_norm = norm()
        self.router = Gemma4Router(config, feed_forward)
        self.experts_norm = norm()
        self.experts = Experts(config, feed_forward)
        self.experts_post_norm = norm()

    def __call__[Cache](
        self, x: Float[Array, "tokens embed"], context: ForwardContext[Cache]
    ) -> Float[Array, "tokens embed"]:
        """Return the sum of both parts. x: the residual stream, not normalized."""
        dense = self.dense(self.dense_norm(x), context.under("dense"))
        experts, weights = self.router(x, context.under("router"))
        routed = self.experts(self.experts_norm(x), experts, weights, context)
        total: Array = self.dense_post_norm(dense) + self.experts_post_norm(routed)
        return total


class Gemma4Router(Router):
    """Router over the normalized and scaled stream, with a factor of each expert's weights."""

    def __init__(self, config: DecoderConfig, feed_forward: Gemma4Experts) -> None:
        """Declare the projection and the factors."""
        super().__init__(config, feed_forward.routing)
        self.norm = UnscaledRMSNorm(config.norm_eps)
        self.scale = ones(embed=config.embed)
        self.expert_scale = ones(experts=feed_forward.routing.num_experts)

    def __call__[Cache](
        self, x: Float[Array, "tokens embed"], context: ForwardContext[Cache]
    ) -> tuple[Int[Array, "tokens top_k"], Float[Array, "tokens top_k"]]:
        """Return the experts of each token, best first, and their weights."""
        scaled = self.norm(x) * self.scale[...] * x.shape[-1] ** -0.5
        experts, weights = super().__call__(scaled, context)
        return experts, weights * self.expert_scale[...].astype(weights.dtype)[experts]


class Gemma4Decoder(Decoder):
    """Decoder with an input for each layer, from a second embedding and the first one."""

    def __init__(self, config: Gemma4Config) -> None:
        """Declare the parameters."""
        super().__init__(config)
        d, p = config.embed, config.input_width
        width, num_rows = config.num_layers * p, config.vocab_size + config.vocab_padding
        self.input_width = p
        self.input_embedding = matrix("inputs", vocab=num_rows, inputs=width) if p else None
        self.input_projection = matrix("embed", embed=d, inputs=width) if p else None
        self.input_norm: Any = config.norm(config.norm_eps, input=p) if p else None

    def layer_inputs(
        self, token_ids: Int[Array, " tokens"], x: Float[Array, "tokens embed"], rows: Rows
    ) -> Float[Array, "layers tokens width"] | None:
        """See Decoder."""
        if self.input_embedding is None:
            return None
        assert self.input_projection is not None
        with jax.named_scope("layer_inputs"):
            shape = (len(token_ids), self.config.num_layers, self.input_width)
            own = embed(self.input_embedding[...], token_ids, rows) * self.input_width**0.5
            projected = einsum("td,dp->tp", x, self.input_projection[...], rows)
            projected = self.input_norm((projected * self.config.embed**-0.5).reshape(shape))
            inputs: Array = (projected + own.reshape(shape)) * 2**-0.5
            return inputs.swapaxes(0, 1)
