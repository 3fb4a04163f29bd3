"""The decoder that all families here share, declared with flax.nnx and run as a plain tree.

A block is attention and a gated MLP, each behind a norm and added to the stream. The letters of
the einsums: t token, d embed, h head, g key-value head, k head_dim, f ffw, v vocab, l label, p part
of a matrix that is several side by side.

A `Decoder` is a pytree: `jax.jit`, `jax.grad` and `jax.vmap` take it as it is. What crosses the
engine's jit boundary is the plain dict of its arrays, from which `bind` makes a Decoder again
while tracing: nnx objects cost milliseconds per dispatch, a dict costs none.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxserve.layers.attention import Attend, attend_dense
from jaxserve.layers.embed import embed
from jaxserve.layers.linear import ALL_ROWS, Rows, einsum
from jaxserve.layers.norm import rms_norm
from jaxserve.layers.rope import rotation
from jaxserve.models.config import DecoderConfig
from jaxserve.models.declare import matrix, ones, zeros
from pallas_kernels.paged_attention import AttentionSpec
from pallas_kernels.rotary import RopeTable, rotate

# Sees every named activation and returns what the model goes on with: records, or replaces.
type Tap = Callable[[str, Array], Array]


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: DecoderConfig, *, sliding_window: int | None) -> None:
        """Declare the projections, and what the family adds to them."""
        self.spec = AttentionSpec(scale=config.head_dim**-0.5, sliding_window=sliding_window)
        self.norm_eps = config.norm_eps
        d, h, kv, k = config.embed, config.heads, config.kv_heads, config.head_dim
        # One product for all three: each key-value head's queries, then its key, then its value.
        qkv = h // kv + 2
        self.qkv = matrix("embed", embed=d, kv_heads=kv, qkv=qkv, head_dim=k)
        self.o = matrix("heads head_dim", heads=h, head_dim=k, embed=d)
        bias, norm = config.qkv_bias, config.qk_norm
        self.qkv_bias = zeros(kv_heads=kv, qkv=qkv, head_dim=k) if bias else None
        self.o_bias = zeros(embed=d) if config.output_bias else None
        self.q_norm = ones(head_dim=k) if norm else None
        self.k_norm = ones(head_dim=k) if norm else None

    def __call__[Cache](
        self,
        x: Float[Array, "tokens embed"],
        rows: Rows,
        table: RopeTable,
        cache: Cache,
        attend: Attend[Cache],
        *,
        tap: Tap,
    ) -> tuple[Float[Array, "tokens embed"], Cache]:
        """Mix `x` over positions; returns what to add to the stream, and the cache."""
        qkv = _plus(einsum("td,dgpk->tgpk", x, self.qkv[...], rows), self.qkv_bias)
        q = qkv[:, :, :-2].reshape(x.shape[0], -1, qkv.shape[-1])
        k, v = qkv[:, :, -2], qkv[:, :, -1]
        if self.q_norm is not None and self.k_norm is not None:
            q = rms_norm(q, self.q_norm[...], eps=self.norm_eps)
            k = rms_norm(k, self.k_norm[...], eps=self.norm_eps)
        q, k, v = tap("q", rotate(q, table)), tap("k", rotate(k, table)), tap("v", v)
        mixed, cache = attend(q, k, v, cache, self.spec)
        mixed = tap("heads", mixed)
        return _plus(einsum("thk,hkd->td", mixed, self.o[...], rows), self.o_bias), cache


class MLP(nnx.Module):
    """A gated MLP: down(silu(gate(x)) * up(x)) (Shazeer, 2020, arXiv:2002.05202)."""

    def __init__(self, config: DecoderConfig) -> None:
        """Declare the projections, and their biases where the family has them."""
        d, f, bias = config.embed, config.ffw, config.mlp_bias
        self.gate_up = matrix("embed", embed=d, gate_up=2, ffw=f)
        self.down = matrix("ffw", ffw=f, embed=d)
        self.gate_up_bias = zeros(gate_up=2, ffw=f) if bias else None
        self.down_bias = zeros(embed=d) if bias else None

    def __call__(
        self, x: Float[Array, "tokens embed"], rows: Rows, tap: Tap
    ) -> Float[Array, "tokens embed"]:
        """Transform each token of `x` by itself."""
        gate_up = _plus(einsum("td,dpf->tpf", x, self.gate_up[...], rows), self.gate_up_bias)
        active = tap("active", jax.nn.silu(gate_up[:, 0]) * gate_up[:, 1])
        return _plus(einsum("tf,fd->td", active, self.down[...], rows), self.down_bias)


class FeedForward(Protocol):
    """What transforms each token of a layer by itself: `MLP`, or a family's own in its place."""

    def __call__(
        self, x: Float[Array, "tokens embed"], rows: Rows, tap: Tap
    ) -> Float[Array, "tokens embed"]:
        """Return what to add to the stream."""
        ...


class Block(nnx.Module):
    """One layer: attention, then the MLP, each reading the normalised stream and adding to it."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        sliding_window: int | None,
        feed_forward: Callable[[DecoderConfig], FeedForward],
    ) -> None:
        """Declare the layer's parameters."""
        self.norm_eps = config.norm_eps
        self.attention_norm = ones(embed=config.embed)
        self.attention = Attention(config, sliding_window=sliding_window)
        self.mlp_norm = ones(embed=config.embed)
        self.mlp = feed_forward(config)

    def __call__[Cache](
        self,
        x: Float[Array, "tokens embed"],
        rows: Rows,
        table: RopeTable,
        cache: Cache,
        attend: Attend[Cache],
        *,
        tap: Tap,
    ) -> tuple[Float[Array, "tokens embed"], Cache]:
        """Return the stream after this layer, and the layer's cache."""
        with jax.named_scope("attention"):
            inner = rms_norm(x, self.attention_norm[...], eps=self.norm_eps)
            out, cache = self.attention(
                inner, rows, table, cache, attend, tap=_under(tap, "attention")
            )
            x = x + tap("attention.out", out)
        with jax.named_scope("mlp"):
            inner = rms_norm(x, self.mlp_norm[...], eps=self.norm_eps)
            x = x + tap("mlp.out", self.mlp(inner, rows, _under(tap, "mlp")))
        return tap("out", x), cache


class Decoder(nnx.Module):
    """A causal language model: token ids in, a distribution over the next token out.

    feed_forward: the FeedForward of its layers, made of the config.
    """

    feed_forward: ClassVar[type[Any]] = MLP

    def __init__(self, config: DecoderConfig) -> None:
        """Declare the parameters, which do not exist yet: `bind` puts arrays in their place."""
        self.config = config
        self.embedding = matrix("embed", vocab=config.vocab_size, embed=config.embed)
        self.layers = nnx.List(
            Block(config, sliding_window=window, feed_forward=type(self).feed_forward)
            for window in config.sliding_windows
        )
        self.final_norm = ones(embed=config.embed)
        d, labels = config.embed, config.num_labels
        has_lm_head = labels is None and not config.tied_embeddings
        self.lm_head = matrix("embed", embed=d, vocab=config.vocab_size) if has_lm_head else None
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
        tap = _leave if tap is None else tap
        x = tap("embedding", embed(self.embedding[...], token_ids, rows))
        table = rotation(
            config.rope,
            config.head_dim,
            positions,
            length=config.max_position if rope_length is None else rope_length,
        )
        after: list[Cache] = []
        for i, (layer, before) in enumerate(zip(self.layers, caches, strict=True)):
            with jax.named_scope(f"layer_{i}"):
                x, cache = layer(x, rows, table, before, attend, tap=_under(tap, f"layers.{i}"))
            after.append(cache)
        x = rms_norm(x, self.final_norm[...], eps=config.norm_eps)
        return tap("final_norm", x), tuple(after)

    def logits(
        self, hidden: Float[Array, "rows embed"], rows: Rows = ALL_ROWS
    ) -> Float[Array, "rows vocab"]:
        """Return the float32 logits of rows of `hidden`."""
        assert self.config.num_labels is None, "this model has no head for tokens"
        with jax.named_scope("lm_head"):
            if self.lm_head is None:
                return einsum("td,vd->tv", hidden, self.embedding[...], rows, dtype=jnp.float32)
            return einsum("td,dv->tv", hidden, self.lm_head[...], rows, dtype=jnp.float32)

    def pooled(
        self, vectors: Float[Array, "rows embed"], rows: Rows = ALL_ROWS
    ) -> Float[Array, "rows labels"]:
        """Return the float32 scores of the labels, of vectors that stand for whole prompts."""
        assert self.score is not None, "this model has no labels"
        with jax.named_scope("score"):
            return einsum("td,dl->tl", vectors, self.score[...], rows, dtype=jnp.float32)


def _plus(x: Array, bias: nnx.Param[Array] | None) -> Array:
    return x if bias is None else x + bias[...]


def _leave(name: str, value: Array) -> Array:
    del name
    return value


def _under(tap: Tap, prefix: str) -> Tap:
    """Prefix the names that `tap` sees."""
    if tap is _leave:
        return tap
    return lambda name, value: tap(f"{prefix}.{name}", value)
