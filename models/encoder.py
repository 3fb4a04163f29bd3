"""The encoder of the BERT families: every token sees all of its text, before it and after it.

A block is attention and an MLP, each added to the stream, which is normalised after each (Devlin
et al., "BERT", 2019, arXiv:1810.04805). The letters of the einsums are those of `decoder.py`, and
e the width between the two products of the head.

Token ids say which of two texts a token is of, where the model was trained on pairs: the tokens of
the second text are `vocab_size` higher.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxserve.layers.attention import Attend, attend_both_ways
from jaxserve.layers.embed import embed
from jaxserve.layers.linear import ALL_ROWS, Rows, einsum
from jaxserve.layers.norm import layer_norm
from jaxserve.models.config import EncoderConfig
from jaxserve.models.declare import matrix, ones, zeros
from pallas_kernels.paged_attention import AttentionSpec


class Norm(nnx.Module):
    """Normalisation of the stream (Ba et al., 2016, arXiv:1607.06450)."""

    def __init__(self, config: EncoderConfig) -> None:
        """Declare scale and shift."""
        self.eps = config.norm_eps
        self.weight = ones(embed=config.embed)
        self.bias = zeros(embed=config.embed)

    def __call__(self, x: Float[Array, "tokens embed"]) -> Float[Array, "tokens embed"]:
        """Return the stream, normalised."""
        return layer_norm(x, self.weight[...], self.bias[...], eps=self.eps)


class EncoderBlock(nnx.Module):
    """One layer."""

    def __init__(self, config: EncoderConfig) -> None:
        """Declare the layer's parameters."""
        d, h, k, f = config.embed, config.heads, config.head_dim, config.ffw
        self.spec = AttentionSpec(scale=k**-0.5)
        self.qkv = matrix("embed", embed=d, kv_heads=h, qkv=3, head_dim=k)
        self.qkv_bias = zeros(kv_heads=h, qkv=3, head_dim=k)
        self.o = matrix("heads head_dim", heads=h, head_dim=k, embed=d)
        self.o_bias = zeros(embed=d)
        self.attention_norm = Norm(config)
        self.up = matrix("embed", embed=d, ffw=f)
        self.up_bias = zeros(ffw=f)
        self.down = matrix("ffw", ffw=f, embed=d)
        self.down_bias = zeros(embed=d)
        self.mlp_norm = Norm(config)

    def __call__[Cache](
        self, x: Float[Array, "tokens embed"], rows: Rows, cache: Cache, attend: Attend[Cache]
    ) -> Float[Array, "tokens embed"]:
        """Return the stream after this layer; what the cache holds is not kept."""
        with jax.named_scope("attention"):
            qkv = einsum("td,dgpk->tgpk", x, self.qkv[...], rows) + self.qkv_bias[...]
            q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
            mixed, _ = attend(q, k, v, cache, self.spec)
            x = self.attention_norm(
                x + einsum("thk,hkd->td", mixed, self.o[...], rows) + self.o_bias[...]
            )
        with jax.named_scope("mlp"):
            wide = einsum("td,df->tf", x, self.up[...], rows) + self.up_bias[...]
            active = jax.nn.gelu(wide, approximate=False)
            out = einsum("tf,fd->td", active, self.down[...], rows) + self.down_bias[...]
            return self.mlp_norm(x + out)


class Encoder(nnx.Module):
    """Token ids in, a hidden state for each of them out, and scores of labels where it has any."""

    def __init__(self, config: EncoderConfig) -> None:
        """Declare the parameters."""
        self.config = config
        d, labels = config.embed, config.num_labels
        self.embedding = matrix("embed", vocab=config.vocab_size, embed=d)
        self.positions = matrix("", positions=config.num_positions, embed=d)
        self.segments = matrix("", segments=config.num_segments, embed=d)
        self.embedding_norm = Norm(config)
        self.layers = nnx.List(EncoderBlock(config) for _ in range(config.num_layers))
        self.dense = matrix("embed", embed=d, pooled=d) if labels else None
        self.dense_bias = zeros(pooled=d) if labels else None
        self.score = matrix("pooled", pooled=d, labels=labels) if labels else None
        self.score_bias = zeros(labels=labels) if labels else None

    def __call__(self, token_ids: Int[Array, "*batch tokens"]) -> Float[Array, "*batch tokens d"]:
        """Return the hidden states of whole texts, none of them padded."""
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
        """Return the hidden states of texts packed together, which only `attend` tells apart.

        caches: none, and none come back. rope_length: of no meaning here.
        """
        del rope_length
        config = self.config
        x = embed(self.embedding[...], token_ids % config.vocab_size, rows)
        x = x + self.positions[...][positions + config.first_position]
        x = self.embedding_norm(x + self.segments[...][token_ids // config.vocab_size])
        for i, layer in enumerate(self.layers):
            with jax.named_scope(f"layer_{i}"):
                x = layer(x, rows, None, attend)
        return x, tuple(caches)

    def pooled(
        self, vectors: Float[Array, "rows embed"], rows: Rows = ALL_ROWS
    ) -> Float[Array, "rows labels"]:
        """Return the float32 scores of the labels, of the hidden states of first tokens."""
        assert self.dense is not None, "this model has no labels"
        assert self.dense_bias is not None
        assert self.score is not None
        assert self.score_bias is not None
        with jax.named_scope("score"):
            dense = jnp.tanh(
                einsum("td,de->te", vectors, self.dense[...], rows) + self.dense_bias[...]
            )
            scores = einsum("te,el->tl", dense, self.score[...], rows, dtype=jnp.float32)
            return scores + self.score_bias[...].astype(jnp.float32)
