"""Fit models to a mesh: replicate KV heads, and pad the vocabulary."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxserve.models.config import ModelConfig
from jaxserve.parallel.sharding import ShardingPlan
from jaxserve.quantization.layout import WeightLayout
from jaxserve.quantization.matrix import WeightSpec


def fitted[Config: ModelConfig](config: Config, sharding: ShardingPlan) -> Config:
    """Return a model whose KV heads and vocabulary divide by their shards, split as on the mesh.

    If there are more shards than KV heads, and the shards divide by them, each KV head is
    replicated, so that every device has its own. The vocabulary is padded with rows of zeros.
    """
    shards = sharding.num_shards("kv_heads")
    return replace(
        config,
        layers=tuple(
            replace(
                layer,
                mixer=layer.mixer.fitted(shards),
                feed_forward=layer.feed_forward.fitted(sharding.num_shards("experts")),
            )
            for layer in config.layers
        ),
        vocab_padding=-config.vocab_size % sharding.num_shards("vocab"),
    )


def stored_model[Config: ModelConfig](config: Config) -> Config:
    """Return the description of the checkpoint that `config` was fitted from."""
    layers = tuple(replace(layer, mixer=layer.mixer.stored) for layer in config.layers)
    return replace(config, layers=layers, vocab_padding=0)


def stored_layout(config: ModelConfig, layout: WeightLayout) -> WeightLayout:
    """Return the layout of tensors before `fit`: axes that grow may not divide yet."""
    if layout.sharding is None:
        return layout
    grown = {
        "kv_heads": any(layer.mixer.stored != layer.mixer for layer in config.layers),
        "vocab": config.vocab_padding > 0,
    }
    sharding = layout.sharding.without(*(word for word, grows in grown.items() if grows))
    return replace(layout, sharding=sharding)


def fit(
    tensor: Array,
    axes: Sequence[str],
    before: WeightSpec,
    after: WeightSpec,
    layout: WeightLayout,
) -> Array:
    """Convert a stored parameter's tensor to the fitted parameter's, on its devices.

    axes: axes of the tensor, which may be a component of a quantized matrix.
    """
    if before == after:
        return tensor
    copies = after.sizes.get("kv_heads", 1) // before.sizes.get("kv_heads", 1)
    padding = after.sizes.get("vocab", 0) - before.sizes.get("vocab", 0)
    described = jax.ShapeDtypeStruct(tensor.shape, tensor.dtype)
    return _fitting(tuple(axes), copies, padding, layout, described)(tensor)


@lru_cache(maxsize=64)
def _fitting(
    axes: tuple[str, ...],
    copies: int,
    padding: int,
    layout: WeightLayout,
    described: jax.ShapeDtypeStruct,
) -> Callable[[Array], Array]:
    grow = partial(_grown, axes=axes, copies=copies, padding=padding)
    shape = jax.eval_shape(grow, described).shape
    return jax.jit(grow, out_shardings=layout.array(axes, shape).sharding)


def _grown(tensor: Array, *, axes: tuple[str, ...], copies: int, padding: int) -> Array:
    if "vocab" in axes:
        widths = [(0, padding if axis == "vocab" else 0) for axis in axes]
        return jnp.pad(tensor, widths)
    if "kv_heads" not in axes:  # of a quantized matrix, what all its channels share
        return tensor
    heads = axes.index("kv_heads")
    if "qkv" not in axes:
        return jnp.repeat(tensor, copies, axis=heads)
    # Per KV head: queries are divided among the copies, key and value are repeated.
    qkv = axes.index("qkv")
    assert qkv == heads + 1, axes
    shape, num_queries = tensor.shape, tensor.shape[qkv] - 2
    queries = lax.slice_in_dim(tensor, 0, num_queries, axis=qkv).reshape(
        *shape[:heads], shape[heads] * copies, num_queries // copies, *shape[qkv + 1 :]
    )
    pairs = jnp.repeat(
        lax.slice_in_dim(tensor, num_queries, num_queries + 2, axis=qkv), copies, axis=heads
    )
    return jnp.concatenate([queries, pairs], axis=qkv)
