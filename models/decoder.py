"""Decoder shared by the model families, declared with flax.nnx and run as a plain tree.

A block adds the outputs of a mixer and of a feed-forward to the residual stream. The layer's
description defines its norms. Einsum letters: t token, d embed, h head, g key-value head, k
head_dim, f ffw, v vocab, l label, p index of a projection in a fused matrix.

A `Decoder` is a pytree, so `jax.jit`, `jax.grad` and `jax.vmap` accept it. The engine passes its
arrays to jitted functions as a plain dict, and `bind` rebuilds the Decoder during tracing.
Dispatching nnx objects takes milliseconds, dispatching a dict does not.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxserve.layers.activation import ACTIVATIONS
from jaxserve.layers.attention import Attend, attend_both_ways, attend_dense
from jaxserve.layers.embed import embed
from jaxserve.layers.linear import ALL_ROWS, Rows, einsum
from jaxserve.models.config import DecoderConfig, LayerConfig, Projection
from jaxserve.models.declare import matrix, zeros
from jaxserve.models.forward import ForwardContext, Tap


class Block(nnx.Module):
    """Decoder layer: a mixer, then a feed-forward, with residuals; see LayerConfig."""

    def __init__(self, config: DecoderConfig, layer: LayerConfig) -> None:
        """Declare the layer's parameters."""

        def norm(*, exists: bool) -> Any:
            return config.norm(config.norm_eps, embed=config.embed) if exists else None

        self.residual_multiplier = layer.residual_multiplier
        self.attention_norm = norm(exists=layer.pre_norm and not layer.takes_normalized)
        self.attention = layer.mixer.module(config, layer.mixer)
        self.attention_post_norm = norm(exists=layer.post_norm)
        self.mlp_norm = norm(exists=layer.pre_norm)
        self.mlp = layer.feed_forward.module(config, layer.feed_forward)
        self.mlp_post_norm = norm(exists=layer.post_norm)

    def __call__[Cache](
        self, x: Float[Array, "tokens embed"], cache: Cache, context: ForwardContext[Cache]
    ) -> tuple[Float[Array, "tokens embed"], Cache]:
        """Return the residual stream after this layer, and the layer's cache."""
        x, cache = self.added(x, cache, context)
        return context.tap("out", x), cache

    def added[Cache](
        self, x: Float[Array, "tokens embed"], cache: Cache, context: ForwardContext[Cache]
    ) -> tuple[Float[Array, "tokens embed"], Cache]:
        """Return `x` with the outputs of mixer and feed-forward added, and the layer's cache."""
        with jax.named_scope("attention"):
            inner = _through(self.attention_norm, x)
            out, cache = self.attention(inner, cache, context.under("attention"))
            out = context.tap("attention.out", _through(self.attention_post_norm, out))
            x = x + _times(out, self.residual_multiplier)
        with jax.named_scope("mlp"):
            out = self.mlp(_through(self.mlp_norm, x), context.under("mlp"))
            out = context.tap("mlp.out", _through(self.mlp_post_norm, out))
            x = x + _times(out, self.residual_multiplier)
        return x, cache


class Decoder(nnx.Module):
    """Causal language model, from token ids to the logits of the next token."""

    def __init__(self, config: DecoderConfig) -> None:
        """Declare the parameters; `bind` supplies their arrays."""
        self.config = config
        num_rows = config.vocab_size + config.vocab_padding
        self.embedding = matrix("embed", vocab=num_rows, embed=config.embed)
        positions, d = config.num_positions, config.embed
        self.positions = matrix("", positions=positions, embed=d) if positions else None
        has_norm = config.embedding_norm
        self.embedding_norm: Any = config.norm(config.norm_eps, embed=d) if has_norm else None
        self.layers = nnx.List(layer.block(config, layer) for layer in config.layers)
        self.final_norm = config.final_norm(config.norm_eps, embed=config.embed)
        labels = config.num_labels
        has_lm_head = labels is None and not config.tied_embeddings
        self.lm_head = matrix("embed", embed=d, vocab=num_rows) if has_lm_head else None
        self.score = matrix("embed", embed=d, labels=labels) if labels else None
        widths = [d, *(each.width for each in config.projections)]
        self.projections = nnx.List(
            Projected(width, each) for width, each in zip(widths, config.projections, strict=False)
        )

    def __call__(
        self, token_ids: Int[Array, "*batch tokens"], *, tap: Tap | None = None
    ) -> Float[Array, "*batch tokens vocab"]:
        """Return float32 logits of the token after each token of whole sequences.

        Models without a language model head return the final hidden states instead.

        Every sequence starts at position 0. Pad shorter sequences at the end with any token, which
        earlier tokens do not attend to. tap: called with the named activations of one sequence
        (docs/models.md lists them); may replace them. Inside a transformation they are tracers; use
        `capture` to return them.
        """
        if token_ids.ndim > 1:
            return jax.vmap(lambda row: self(row, tap=tap))(token_ids)
        length = token_ids.shape[0]
        attend = attend_dense if self.config.is_causal else attend_both_ways
        caches = (None,) * self.config.num_layers
        hidden, _ = self.hidden(
            token_ids, jnp.arange(length), caches, attend, rope_length=length, tap=tap
        )
        return self.logits(hidden) if self.config.num_labels is None else hidden

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
        """Return the final hidden states, and each layer's cache after the call.

        The tokens may belong to one sequence or to several packed ones; `attend` must separate
        those. caches: one per layer, passed to `attend`. rows: live tokens and their adapters.
        rope_length: length for dynamic RoPE, by default the model's context; other variants ignore
        it.
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
        if self.positions is not None:
            x += self.positions[...][positions]
        x = _through(self.embedding_norm, x)
        x = context.tap("embedding", x)
        inputs = self.layer_inputs(token_ids, x, rows)
        after: list[Cache] = []
        for i, (layer, before) in enumerate(zip(self.layers, caches, strict=True)):
            own = context if inputs is None else replace(context, layer_input=inputs[i])
            with jax.named_scope(f"layer_{i}"):
                x, cache = layer(x, before, own.under(f"layers.{i}"))
            after.append(cache)
        return context.tap("final_norm", self.final_norm(x)), tuple(after)

    def layer_inputs(
        self,
        token_ids: Int[Array, " tokens"],  # noqa: ARG002
        x: Float[Array, "tokens embed"],  # noqa: ARG002
        rows: Rows,  # noqa: ARG002
    ) -> Float[Array, "layers tokens width"] | None:
        """Return an input for each layer besides the residual stream `x`; here there is none."""
        return None

    def logits(
        self, hidden: Float[Array, "rows embed"], rows: Rows = ALL_ROWS
    ) -> Float[Array, "rows vocab"]:
        """Return float32 logits for rows of `hidden`, with `vocab_padding` columns at the end."""
        assert self.config.num_labels is None, "this model has no language model head"
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
    ) -> Float[Array, "rows width"]:
        """Return the float32 label scores, or the embeddings, of pooled prompts."""
        if self.score is None:
            for projection in self.projections:
                vectors = projection(vectors, rows)
            return vectors.astype(jnp.float32)
        with jax.named_scope("score"):
            return einsum("td,dl->tl", vectors, self.score[...], rows, dtype=jnp.float32)


class Projected(nnx.Module):
    """Linear layer on pooled vectors; see Projection."""

    def __init__(self, width: int, projection: Projection) -> None:
        """Declare the parameters. width: length of the vectors."""
        self.activation = projection.activation
        self.weight = matrix("pooled", pooled=width, projected=projection.width)
        self.bias = zeros(projected=projection.width) if projection.bias else None

    def __call__(self, vectors: Float[Array, "rows pooled"], rows: Rows) -> Array:
        """Return [rows, projected]."""
        with jax.named_scope("projection"):
            out = einsum("tp,pe->te", vectors, self.weight[...], rows)
            out = out if self.bias is None else out + self.bias[...]
            return out if self.activation is None else ACTIVATIONS[self.activation](out)


def _through(norm: Any, x: Array) -> Array:
    """Apply a norm, if there is one."""
    return x if norm is None else norm(x)


def _times(x: Array, factor: float) -> Array:
    return x if factor == 1 else x * factor
