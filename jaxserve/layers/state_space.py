"""State space duality of Mamba2 (Dao and Gu, 2024, arXiv:2405.21060).

A head's state S maps the entries of c to values. A token decays it, and adds its own value:

    S = decay * S + rate * x b^T;  output = S c

A chunk of tokens is computed by matmuls (section 6 of the paper, in terms of logarithms of decays
so that products of them cannot underflow).

Einsum letters: n sequence or chunk, i j token of a chunk, g group of heads, r head of a group, v
value dimension, s state dimension.
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


class StateSpaceInputs(NamedTuple):
    """Float32 inputs of the recurrence. The heads of a group share b and c.

    log_decay should be at most 0, and rate at least 0.
    """

    x: Float[Array, "tokens groups heads value_dim"]
    b: Float[Array, "tokens groups state_dim"]
    c: Float[Array, "tokens groups state_dim"]
    log_decay: Float[Array, "tokens groups heads"]
    rate: Float[Array, "tokens groups heads"]


def state_space(
    inputs: StateSpaceInputs,
    memory: Float[Array, "sequences groups heads value_dim state_dim"],
    states: States,
) -> tuple[
    Float[Array, "tokens groups heads value_dim"],
    Float[Array, "sequences groups heads value_dim state_dim"],
]:
    """Apply the recurrence to the tokens of a step; return outputs and the memory after them."""
    with jax.named_scope("state_space"):
        return recur(Recurrence(_step, _prepare, _advance), inputs, memory, states)


def _step(memory: Array, tokens: Tokens) -> tuple[Array, Array]:
    x, b, c, log_decay, rate = tokens
    added = (x * rate[..., None])[..., None] * b[:, :, None, None]
    memory = memory * jnp.exp(log_decay)[..., None, None] + added
    return memory, _einsum("ngrvs,ngs->ngrv", memory, c)


class _Chunk(NamedTuple):
    """A chunk as matrices.

    Its outputs are outputs + since_start * (c memory), and it adds `added` b to the memory.
    """

    outputs: Array  # [i, g, r, v]
    c: Array  # [i, g, s]
    since_start: Array  # [i, g, r]
    added: Array  # [i, g, r, v]
    b: Array  # [i, g, s]
    decay: Array  # [g, r]


def _prepare(tokens: Tokens) -> _Chunk:
    """Return the matrices of chunks: x [n, i, g, r, v], b, c [n, i, g, s], the others [n, i, g, r].

    All but the memory's part of the outputs is known before the memory is.
    """
    x, b, c, log_decay, rate = tokens
    decays = jnp.cumsum(log_decay, axis=1)  # from the start of the chunk
    by_head = jnp.moveaxis(decays, 1, -1)
    between = by_head[..., :, None] - by_head[..., None, :]
    earlier = jnp.tril(jnp.ones((CHUNK, CHUNK), bool))
    between = jnp.exp(jnp.where(earlier, between, -jnp.inf))
    weights = _einsum("nigs,njgs->ngij", c, b)[:, :, None] * between
    values = x * rate[..., None]
    return _Chunk(
        outputs=_einsum("ngrij,njgrv->nigrv", weights, values),
        c=c,
        since_start=jnp.exp(decays),
        added=values * jnp.exp(decays[:, -1:] - decays)[..., None],
        b=b,
        decay=jnp.exp(decays[:, -1]),
    )


def _advance(memory: Array, chunk: _Chunk) -> tuple[Array, Array]:
    from_memory = _einsum("igs,grvs->igrv", chunk.c, memory)
    outputs = chunk.outputs + from_memory * chunk.since_start[..., None]
    memory = memory * chunk.decay[..., None, None]
    return memory + _einsum("igrv,igs->grvs", chunk.added, chunk.b), outputs
