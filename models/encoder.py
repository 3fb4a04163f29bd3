"""Encoder of the BERT families: every token attends to all tokens of its text.

A block is attention and an MLP, each followed by a residual and a norm (Devlin et al., "BERT",
2019, arXiv:1810.04805). Einsum letters are those of `decoder.py`; e is the inner width of the head.

For models trained on pairs of texts, token ids also encode the segment: tokens of the second text
are offset by `vocab_size`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxserve.layers.attention import Attend, attend_both_ways
from jaxserve.layers.embed import embed
from jaxserve.layers.linear import ALL_ROWS, Rows, einsum
from jaxserve.models.config import EncoderConfig, LayerConfig
from jaxserve.models.declare import matrix, zeros
from jaxserve.models.forward import ForwardContext


class EncoderBlock(nnx.Module):
    """Encoder layer: attention and an MLP, each followed by a residual and a norm."""

    def __init__(self, config: EncoderConfig, layer: LayerConfig) -> None:
        """Declare the layer's parameters."""
        self.attention = layer.mixer.module(config, layer.mixer)
        self.attention_norm = config.norm(config.norm_eps, embed=config.embed)
        self.mlp = layer.feed_forward.module(config, layer.feed_forward)
        self.mlp_norm = config.norm(config.norm_eps, embed=config.embed)

    def __call__(
        self, x: Float[Array, "tokens embed"], context: ForwardContext[None]
    ) -> Float[Array, "tokens embed"]:
        """Return the residual stream after this layer; an encoder has no caches."""
        with jax.named_scope("attention"):
            mixed, _ = self.attention(x, None, context)
            x = self.attention_norm(x + mixed)
        with jax.named_scope("mlp"):
            normalised: Array = self.mlp_norm(x + self.mlp(x, context))
            return normalised


class Encoder(nnx.Module):
    """Text encoder, from token ids to hidden states, and to label scores if it has a head."""

    def __init__(self, config: EncoderConfig) -> None:
        """Declare the parameters."""
        self.config = config
        d, labels = config.embed, config.num_labels
        self.embedding = matrix("embed", vocab=config.vocab_size + config.vocab_padding, embed=d)
        self.positions = matrix("", positions=config.num_positions, embed=d)
        self.segments = matrix("", segments=config.num_segments, embed=d)
        self.embedding_norm = config.norm(config.norm_eps, embed=d)
        self.layers = nnx.List(layer.block(config, layer) for layer in config.layers)
        self.dense = matrix("embed", embed=d, pooled=d) if labels else None
        self.dense_bias = zeros(pooled=d) if labels else None
        self.score = matrix("pooled", pooled=d, labels=labels) if labels else None
        self.score_bias = zeros(labels=labels) if labels else None

    def __call__(self, token_ids: Int[Array, "*batch tokens"]) -> Float[Array, "*batch tokens d"]:
        """Return the hidden states of whole texts without padding."""
        if token_ids.ndim > 1:
            return jax.vmap(self)(token_ids)
        positions = jnp.arange(token_ids.shape[0])
        return self.hidden(token_ids, positions, (), attend_both_ways)[0]

    def hidden[Cache](
        self,
        token_ids: Int[Array, " tokens"],
        positions: Int[Array, " tokens"],
        caches: Sequence[Cache],
        attend: Attend[None],
        *,
        rows: Rows = ALL_ROWS,
        rope_length: int | None = None,
    ) -> tuple[Float[Array, "tokens embed"], tuple[Cache, ...]]:
        """Return the hidden states of texts packed together; `attend` must separate them.

        caches: empty, and returned as they are. rope_length: ignored.
        """
        config = self.config
        context = ForwardContext(
            positions=positions, attend=attend, rows=rows, rope_length=rope_length or 0
        )
        x = embed(self.embedding[...], token_ids % config.vocab_size, rows)
        x = x + self.positions[...][positions + config.first_position]
        x = self.embedding_norm(x + self.segments[...][token_ids // config.vocab_size])
        for i, layer in enumerate(self.layers):
            with jax.named_scope(f"layer_{i}"):
                x = layer(x, context)
        return x, tuple(caches)

    def pooled(
        self, vectors: Float[Array, "rows embed"], rows: Rows = ALL_ROWS
    ) -> Float[Array, "rows labels"]:
        """Return the float32 label scores, from the hidden states of first tokens."""
        assert self.dense is not None, "this model has no classification head"
        assert self.dense_bias is not None
        assert self.score is not None
        assert self.score_bias is not None
        with jax.named_scope("score"):
            dense = jnp.tanh(
                einsum("td,de->te", vectors, self.dense[...], rows) + self.dense_bias[...]
            )
            scores = einsum("te,el->tl", dense, self.score[...], rows, dtype=jnp.float32)
            return scores + self.score_bias[...].astype(jnp.float32)
