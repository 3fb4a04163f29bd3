"""The decoder that all families here share, declared with flax.nnx and run as a plain tree.

A block is a mixer and a feed-forward, each added to the stream, with norms where the layer's
description has them. The letters of the einsums: t token, d embed, h head, g key-value head,
k head_dim, f ffw, v vocab, l label, p part of a matrix that is several side by side.

A `Decoder` is a pytree: `jax.jit`, `jax.grad` and `jax.vmap` take it as it is. What crosses the
engine's jit boundary is the plain dict of its arrays, from which `bind` makes a Decoder again
while tracing: nnx objects cost milliseconds per dispatch, a dict costs none.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxserve.layers.attention import Attend, attend_dense
from jaxserve.layers.embed import embed
from jaxserve.layers.linear import ALL_ROWS, Rows, einsum
from jaxserve.models.config import DecoderConfig, LayerConfig
from jaxserve.models.declare import matrix
from jaxserve.models.forward import ForwardContext, Tap


class Block(nnx.Module):
    """One layer: the mixer, then the feed-forward, each added to the stream; see LayerConfig."""

    def __init__(self, config: DecoderConfig, layer: LayerConfig) -> None:
        """Declare the layer's parameters."""

        def norm(*, stands: bool) -> Any:
            return config.norm(config.norm_eps, embed=config.embed) if stands else None

        self.residual_multiplier = layer.residual_multiplier
        self.attention_norm = norm(stands=layer.pre_norm)
        self.attention = layer.mixer.module(config, layer.mixer)
        self.attention_post_norm = norm(stands=layer.post_norm)
        self.mlp_norm = norm(stands=layer.pre_norm)
        self.mlp = layer.feed_forward.module(config, layer.feed_forward)
        self.mlp_post_norm = norm(stands=layer.post_norm)

    def __call__[Cache](
        self, x: Float[Array, "tokens embed"], cache: Cache, context: ForwardContext[Cache]
    ) -> tuple[Float[Array, "tokens embed"], Cache]:
        """Return the stream after this layer, and the layer's cache."""
        with jax.named_scope("attention"):
            inner = _through(self.attention_norm, x)
            out, cache = self.attention(inner, cache, context.under("attention"))
            out = context.tap("attention.out", _through(self.attention_post_norm, out))
            x = x + _times(out, self.residual_multiplier)
        with jax.named_scope("mlp"):
            out = self.mlp(_through(self.mlp_norm, x), context.under("mlp"))
            out = context.tap("mlp.out", _through(self.mlp_post_norm, out))
            x = x + _times(out, self.residual_multiplier)
        return context.tap("out", x), cache


class Decoder(nnx.Module):
    """A causal language model: token ids in, a distribution over the next token out."""

    def __init__(self, config: DecoderConfig) -> None:
        """Declare the parameters, which do not exist yet: `bind` puts arrays in their place."""
        self.config = config
        num_rows = config.vocab_size + config.vocab_padding
        self.embedding = matrix("embed", vocab=num_rows, embed=config.embed)
        self.layers = nnx.List(layer.block(config, layer) for layer in config.layers)
        self.final_norm = config.final_norm(config.norm_eps, embed=config.embed)
        d, labels = config.embed, config.num_labels
        has_lm_head = labels is None and not config.tied_embeddings
        self.lm_head = matrix("embed", embed=d, vocab=num_rows) if has_lm_head else None
        self.score = matrix("embed", embed=d, labels=labels) if labels else None

    def __call__(
        self, token_ids: Int[Array, "*batch tokens"], *, tap: Tap | None = None
    ) -> Float[Array, "*batch tokens vocab"]:
        """Return float32 logits of the token after each token of whole sequences.

        Every sequence starts at position 0. Those of unequal length are padded at the end, with
        any token: none sees those after it.
        tap: sees and may replace the named activations of one sequence (docs/models.md lists
        them). What it keeps are tracers once a transformation is at work: use `capture`.
        """
        if token_ids.ndim > 1:
            return jax.vmap(lambda row: self(row, tap=tap))(token_ids)
        length = token_ids.shape[0]
        caches = (None,) * self.config.num_layers
        hidden, _ = self.hidden(
            token_ids, jnp.arange(length), caches, attend_dense, rope_length=length, tap=tap
        )
        return self.logits(hidden)

    def hidden[Cache](
        self,
        token_ids: Int[Array, " tokens"],
        positions: Int[Array, " tokens"],
        caches: Sequence[Cache],
        attend: Attend[Cache],
        *,
        rows: Rows = ALL_ROWS,
        rope_length: int | None = None,
        tap: Tap | None = None,
    ) -> tuple[Float[Array, "tokens embed"], tuple[Cache, ...]]:
        """Return what the head reads, and each layer's cache after the call.

        The tokens may be of one sequence or of many packed together; only `attend` knows which
        belongs where. caches: one per layer, handed to `attend`.
        rows: which tokens are live, and their adapters.
        rope_length: the length dynamic RoPE is scaled for, by default the model's own context;
        the other variants do not depend on it.
        """
        config = self.config
        context = ForwardContext(
            positions=positions,
            attend=attend,
            rows=rows,
            rope_length=config.max_position if rope_length is None else rope_length,
            observer=tap,
        )
        x = _times(embed(self.embedding[...], token_ids, rows), config.embedding_multiplier)
        x = context.tap("embedding", x)
        after: list[Cache] = []
        for i, (layer, before) in enumerate(zip(self.layers, caches, strict=True)):
            with jax.named_scope(f"layer_{i}"):
                x, cache = layer(x, before, context.under(f"layers.{i}"))
            after.append(cache)
        return context.tap("final_norm", self.final_norm(x)), tuple(after)

    def logits(
        self, hidden: Float[Array, "rows embed"], rows: Rows = ALL_ROWS
    ) -> Float[Array, "rows vocab"]:
        """Return the float32 logits of rows of `hidden`, `vocab_padding` included."""
        assert self.config.num_labels is None, "this model has no head for tokens"
        with jax.named_scope("lm_head"):
            if self.lm_head is None:
                logits = einsum("td,vd->tv", hidden, self.embedding[...], rows, dtype=jnp.float32)
            else:
                logits = einsum("td,dv->tv", hidden, self.lm_head[...], rows, dtype=jnp.float32)
            logits = _times(logits, self.config.logit_multiplier)
            cap = self.config.logit_soft_cap
            return logits if cap is None else cap * jnp.tanh(logits / cap)

    def pooled(
        self, vectors: Float[Array, "rows embed"], rows: Rows = ALL_ROWS
    ) -> Float[Array, "rows labels"]:
        """Return the float32 scores of the labels, of vectors that stand for whole prompts."""
        assert self.score is not None, "this model has no labels"
        with jax.named_scope("score"):
            return einsum("td,dl->tl", vectors, self.score[...], rows, dtype=jnp.float32)


def _through(norm: Any, x: Array) -> Array:
    """Normalise, where a norm stands."""
    return x if norm is None else norm(x)


def _times(x: Array, factor: float) -> Array:
    return x if factor == 1 else x * factor
