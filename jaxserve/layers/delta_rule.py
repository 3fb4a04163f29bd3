"""Gated delta rule (Yang et al., "Gated Delta Networks", 2024, arXiv:2412.06464).

A head's state S is a matrix that maps keys to values. A token decays it, and replaces the value at
its key by a mixture of the old value and its own:

    S = decay * S;  S = S + key (rate * (value - key S));  output = query S

A chunk of tokens is computed by matmuls and one triangular solve (section 3.3 of the paper, in
terms of logarithms of decays so that products of them cannot underflow).

Einsum letters: n sequence or chunk, i j token of a chunk, h key head, r value head of a key head, k
key dimension, v value dimension.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxserve.layers.recurrence import CHUNK, Recurrence, Tokens, recur
from jaxserve.layers.recurrent import States

# Products of states keep more precision than the default of accelerators, since errors accumulate.
_einsum = partial(jnp.einsum, precision=lax.Precision.HIGH)


class DeltaInputs(NamedTuple):
    """Float32 inputs of the rule. Each key head serves `group` value heads.

    k should have length 1, log_decay be at most 0, and rate be in [0, 1].
    """

    q: Float[Array, "tokens key_heads key_dim"]
    k: Float[Array, "tokens key_heads key_dim"]
    v: Float[Array, "tokens key_heads group value_dim"]
    log_decay: Float[Array, "tokens key_heads group"]
    rate: Float[Array, "tokens key_heads group"]


def gated_delta_rule(
    inputs: DeltaInputs,
    memory: Float[Array, "sequences key_heads group key_dim value_dim"],
    states: States,
) -> tuple[
    Float[Array, "tokens key_heads group value_dim"],
    Float[Array, "sequences key_heads group key_dim value_dim"],
]:
    """Apply the rule to the tokens of a step; return outputs and the memory after them."""
    with jax.named_scope("gated_delta_rule"):
        return recur(Recurrence(_step, _prepare, _advance), inputs, memory, states)


def _step(memory: Array, tokens: Tokens) -> tuple[Array, Array]:
    q, k, v, log_decay, rate = tokens
    memory = memory * jnp.exp(log_decay)[..., None, None]
    old = _einsum("nhk,nhrkv->nhrv", k, memory)
    change = rate[..., None] * (v - old)
    memory = memory + k[:, :, None, :, None] * change[..., None, :]
    return memory, _einsum("nhk,nhrkv->nhrv", q, memory)


class _Chunk(NamedTuple):
    """A chunk as matrices, of each head.

    The changes that its tokens make to the memory are values - reads @ memory, and its outputs are
    q @ memory + weights @ changes.
    """

    values: Array  # [h, r, i, v]
    reads: Array  # [h, r, i, k]
    q: Array  # [h, r, i, k]
    k: Array  # [h, r, i, k]
    weights: Array  # [h, r, i, j]
    decay: Array  # [h, r]


def _prepare(tokens: Tokens) -> _Chunk:
    """Return the matrices of chunks: q, k [n, i, h, k], v [n, i, h, r, v], the others [n, i, h, r].

    The change of a token is its own value less those that memory and earlier changes have at its
    key, a triangular system of equations over the changes of the chunk.
    """
    q, k, v, log_decay, rate = tokens
    decays = jnp.moveaxis(jnp.cumsum(log_decay, axis=1), 1, -1)  # from the start of the chunk
    rate = jnp.moveaxis(rate, 1, -1)
    earlier = jnp.tril(jnp.ones((CHUNK, CHUNK), bool))
    between = decays[..., :, None] - decays[..., None, :]
    between = jnp.exp(jnp.where(earlier, between, -jnp.inf))
    overlap = _einsum("nihk,njhk->nhij", k, k)[:, :, None] * between * rate[..., None]
    weights = _einsum("nihk,njhk->nhij", q, k)[:, :, None] * between
    since_start = jnp.exp(decays)[..., None]
    until_end = jnp.exp(decays[..., -1:] - decays)[..., None]
    q, k = (jnp.moveaxis(each, 1, 2)[:, :, None] for each in (q, k))
    v = jnp.moveaxis(v, 1, 3)
    own = jnp.concatenate([v, k * since_start], axis=-1) * rate[..., None]
    solved = lax.linalg.triangular_solve(
        overlap, own, left_side=True, lower=True, unit_diagonal=True
    )
    values, reads = jnp.split(solved, [v.shape[-1]], axis=-1)
    decay = jnp.exp(decays[..., -1])
    return _Chunk(values, reads, q * since_start, k * until_end, weights, decay)


def _advance(memory: Array, chunk: _Chunk) -> tuple[Array, Array]:
    changes = chunk.values - _einsum("hrik,hrkv->hriv", chunk.reads, memory)
    outputs = _einsum("hrik,hrkv->ihrv", chunk.q, memory)
    outputs += _einsum("hrij,hrjv->ihrv", chunk.weights, changes)
    memory = memory * chunk.decay[..., None, None]
    return memory + _einsum("hrik,hriv->hrkv", chunk.k, changes), outputs
