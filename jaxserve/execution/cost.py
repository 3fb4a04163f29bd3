"""What a step costs at least, counted from shapes: FLOPs, bytes of device memory, time.

The count is the same for every target, so that targets compare; compilers' own estimates are not
(XLA gives none for a GPU that is absent). It is a bound: activations that stay in caches, and what
devices send each other, count as nothing.
"""

from dataclasses import dataclass
from math import prod

import jax
import numpy as np

from jaxserve.execution.attention import AttentionPlan
from jaxserve.execution.memory import tree_bytes
from jaxserve.execution.programs import Helper, ProgramSet
from jaxserve.execution.shapes import StepShape, Variant
from jaxserve.models import DecoderConfig, Params
from pallas_kernels.targets import Target

_LOGIT_BYTES = 4  # float32, written once and read once
# What a slot remembers of each token: seen, counts and bias (`state.SlotState`).
_MEMORY_BYTES = 1 + 4 + 4


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs, and bytes read and written, of one device."""

    flops: int
    num_bytes: int

    def seconds(self, target: Target) -> float | None:
        """Return the time below which `target` cannot be, None where its speeds are unknown.

        It is that of the roofline model (Williams et al., 2009, doi:10.1145/1498765.1498785).
        FLOPs count at the target's rate for bfloat16.
        """
        if not target.bandwidth or not target.flops:
            return None
        return max(self.num_bytes / target.bandwidth, self.flops / target.flops)

    def bound(self, target: Target) -> str | None:
        """Return what that time is spent on: "memory" or "compute"."""
        if not target.bandwidth or not target.flops:
            return None
        by_memory = self.num_bytes / target.bandwidth
        return "memory" if by_memory >= self.flops / target.flops else "compute"


def step_cost(
    model: DecoderConfig,
    shape: StepShape,
    *,
    params: Params,
    attention: AttentionPlan,
    context_len: int,
) -> Cost:
    """Count a full step: no padding, and every sequence `context_len` tokens long when it is done.

    Rows divide evenly among the sequences, whose context is at least their rows. Weights are read
    once, keys and values once per sequence. params: abstract, with shardings.
    """
    config = attention.configs[0]
    rows = shape.tokens // shape.sequences
    length = max(context_len, rows)
    token_bytes = 2 * config.kv_heads * config.head_dim * np.dtype(config.cache_dtype).itemsize
    visible = kept = 0  # pairs of a query and a key; keys that any query sees
    for window in model.sliding_windows:
        window = window or length
        visible += sum(min(window, length - rows + row + 1) for row in range(rows))
        kept += min(length, window + rows - 1)
    attention_flops = 4 * config.heads * config.head_dim * visible * shape.sequences
    cache_bytes = token_bytes * (kept * shape.sequences + model.num_layers * shape.tokens)

    table = _bytes(params["embedding"])
    weights = tree_bytes(params) - (0 if model.tied_embeddings else table)
    embedded = shape.tokens * model.embed * np.dtype(config.dtype).itemsize
    matrices = sum(_size(leaf) for leaf in jax.tree.leaves(params["layers"]) if len(leaf.shape) > 1)
    head = _size(params["embedding"] if model.tied_embeddings else params["lm_head"])
    num_logits = shape.sequences + (shape.tokens if shape.variant is Variant.SCORE else 0)
    logits = 2 * num_logits * model.vocab_size * _LOGIT_BYTES
    remembered = 0
    if shape.variant >= Variant.FULL:
        remembered = shape.sequences * model.vocab_size * _MEMORY_BYTES
    return Cost(
        flops=2 * (matrices * shape.tokens + head * num_logits) + attention_flops,
        num_bytes=weights + embedded + cache_bytes + logits + remembered,
    )


def helper_cost(programs: ProgramSet, helper: Helper) -> Cost:
    """Count what moves when cache and state are made, or one slot's row of the state is written."""
    state = tree_bytes(programs.state)
    if helper is Helper.ALLOCATE:
        return Cost(flops=0, num_bytes=tree_bytes(programs.cache) + state)
    return Cost(flops=0, num_bytes=2 * state // programs.state.last_token.shape[0])


def _size(leaf: jax.ShapeDtypeStruct) -> int:
    """Numbers that one device holds of an array."""
    assert leaf.sharding is not None
    shape: tuple[int, ...] = leaf.sharding.shard_shape(leaf.shape)
    return prod(shape)


def _bytes(leaf: jax.ShapeDtypeStruct) -> int:
    return _size(leaf) * int(np.dtype(leaf.dtype).itemsize)
