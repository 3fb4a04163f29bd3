"""Lower bound of a step's cost, from shapes: FLOPs, bytes of device memory, seconds.

The method is the same for every target, so that results are comparable. Compilers' estimates are
not, and XLA has none for an absent GPU. Activations that stay in on-chip caches and communication
between devices count as zero.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from jaxserve.api.engine_config import WorkModel
from jaxserve.execution.attention import AttentionPlan
from jaxserve.execution.memory import tree_bytes
from jaxserve.execution.programs import Helper, ProgramSet
from jaxserve.execution.shapes import DeferredSampleShape, Feature, StepShape
from jaxserve.models import ModelConfig, Params
from jaxserve.quantization.matrix import as_matrix, matrices
from pallas_kernels.targets import Target

type IntArray = np.ndarray[Any, np.dtype[np.integer[Any]]]

_LOGIT_BYTES = 4  # float32, written once and read once
# Slot state per token: seen, counts and bias (`state.SlotState`).
_MEMORY_BYTES = 1 + 4 + 4


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs, and bytes read and written, of one device."""

    flops: int
    read_bytes: int
    written_bytes: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes read and written."""
        return self.read_bytes + self.written_bytes

    def seconds(self, target: Target) -> float | None:
        """Return the lower bound of the time on `target`, None if its speeds are unknown.

        Uses the roofline model (Williams et al., 2009, doi:10.1145/1498765.1498785) with the
        target's FLOP rate for bfloat16.
        """
        if not target.bandwidth or not target.flops:
            return None
        return max(self.num_bytes / target.bandwidth, self.flops / target.flops)

    def bound(self, target: Target) -> str | None:
        """Return the limiting resource: "memory" or "compute"; None if unknown."""
        if not target.bandwidth or not target.flops:
            return None
        by_memory = self.num_bytes / target.bandwidth
        return "memory" if by_memory >= self.flops / target.flops else "compute"


class StepCosts:
    """Computes the cost of steps of one engine, in one or two microseconds each.

    Weights are read once per step, keys and values once per sequence. Padding costs nothing. Tokens
    are spread evenly over experts, and experts without tokens are not read. params: arrays or
    abstract arrays, with shardings.
    """

    def __init__(self, model: ModelConfig, *, params: Params, attention: AttentionPlan) -> None:
        config = attention.configs[0]
        works = [
            layer.work(
                params["layers"][i],
                devices=attention.devices,
                cache_itemsize=_itemsize(config.cache_dtype),
            )
            for i, layer in enumerate(model.layers)
        ]
        # By window: FLOPs of a query-key pair and bytes of a key, summed over its layers.
        self._windows: dict[int | None, tuple[int, int]] = {}
        for work in works:
            pair, key = self._windows.get(work.sliding_window, (0, 0))
            both = (pair + work.pair_flops, key + work.key_bytes)
            self._windows[work.sliding_window] = both
        # By share of experts that a token does not use: bytes of all experts.
        self._experts: dict[float, int] = {}
        for experts in filter(None, (work.experts for work in works)):
            num_bytes = self._experts.get(experts.idle_share, 0) + experts.num_bytes
            self._experts[experts.idle_share] = num_bytes
        head = () if model.head is None else params[model.head]
        looked_up = 0 if model.head == "embedding" else as_matrix(params["embedding"]).num_bytes
        self._weights = tree_bytes(params) - looked_up
        self._token_flops = sum(work.token_flops for work in works)
        self._logit_flops = 2 * sum(matrix.num_weights for matrix in matrices(head))
        self._token_read_bytes = model.embed * _itemsize(config.dtype)
        self._token_written_bytes = sum(w.key_bytes for w in works) if model.caches else 0
        self._state_bytes = sum(work.state_bytes for work in works)
        self._logit_bytes = model.vocab_size * _LOGIT_BYTES
        self._remembered_bytes = model.vocab_size * _MEMORY_BYTES

    def count(
        self,
        starts: IntArray,
        lengths: IntArray,
        *,
        num_tokens: int,
        num_sampled: int,
        features: Feature,
    ) -> Cost:
        """Return the cost of a step whose rows start at `starts` and have `lengths` tokens.

        num_tokens: sum of the lengths. num_sampled: rows that sample a token. Only these need
        logits, unless features include PROMPT_LOGPROBS, which needs the logits of every token.
        """
        flops = key_bytes = 0  # of attention
        for window, (pair, key) in self._windows.items():
            num_pairs, num_keys = _attended(starts, lengths, num_tokens, window)
            flops += num_pairs * pair
            key_bytes += num_keys * key
        idle = sum(size * share**num_tokens for share, size in self._experts.items())
        num_logits = num_sampled + (num_tokens if Feature.PROMPT_LOGPROBS in features else 0)
        remembered = num_sampled * self._remembered_bytes if Feature.ADJUST in features else 0
        return Cost(
            flops=self._token_flops * num_tokens + self._logit_flops * num_logits + flops,
            read_bytes=self._weights
            - round(idle)
            + self._token_read_bytes * num_tokens
            + key_bytes
            + self._state_bytes * len(starts)
            + self._logit_bytes * num_logits
            + remembered,
            written_bytes=self._token_written_bytes * num_tokens
            + self._state_bytes * len(starts)
            + self._logit_bytes * num_logits,
        )

    def work(
        self, *, flops_per_byte: float, attention_efficiency: float, product_speed: float = 1.0
    ) -> WorkModel:
        """Return the cost model of the scheduler, for a device with this balance.

        attention_efficiency: FLOP/s of prefill attention relative to matmuls, and bytes/s of decode
        attention relative to reading weights. product_speed: speed of matmuls with quantized
        weights, relative to others. Sliding-window layers count as zero, because their cost does
        not grow with the context.
        """
        pair_flops, key_bytes = self._windows.get(None, (0, 0))
        pair, key = pair_flops / self._token_flops, key_bytes / self._token_flops
        per_byte = flops_per_byte * product_speed
        return WorkModel(
            free_tokens=max(round(self._weights * per_byte / self._token_flops), 1),
            prefill_attention=pair * product_speed / attention_efficiency,
            decode_attention=key * per_byte / attention_efficiency,
            sampling=self._logit_flops / self._token_flops,
        )


def _attended(
    starts: IntArray, lengths: IntArray, num_tokens: int, window: int | None
) -> tuple[int, int]:
    """Return the query-key pairs and the distinct keys read, in one layer."""
    num_rows = len(starts)
    if num_tokens == num_rows:
        keys = starts + 1 if window is None else np.minimum(starts + 1, window)
        num_keys = int(keys.sum())
        return num_keys, num_keys
    starts, lengths = starts.astype(np.int64), lengths.astype(np.int64)
    if window is None:
        pairs = lengths * starts + lengths * (lengths + 1) // 2
        return int(pairs.sum()), int(starts.sum()) + num_tokens
    # The first rows of a chunk attend to every earlier token, the others to a full window.
    first = np.clip(window - starts, 0, lengths)
    pairs = first * starts + first * (first + 1) // 2 + (lengths - first) * window
    keys = np.minimum(starts + lengths, window + lengths - 1)
    return int(pairs.sum()), int(keys.sum())


def step_cost(
    model: ModelConfig,
    shape: StepShape,
    *,
    params: Params,
    attention: AttentionPlan,
    context_len: int,
) -> Cost:
    """Return the cost of a full step: no padding, every sequence `context_len` tokens long.

    The rows are divided evenly among the sequences. params: abstract arrays with shardings.
    """
    rows = shape.tokens // shape.sequences
    lengths = np.full(shape.sequences, rows)
    return StepCosts(model, params=params, attention=attention).count(
        np.full(shape.sequences, max(context_len - rows, 0)),
        lengths,
        num_tokens=rows * shape.sequences,
        num_sampled=shape.sequences,
        features=shape.features,
    )


def deferred_sample_cost(model: ModelConfig, shape: DeferredSampleShape, *, params: Params) -> Cost:
    """Return the cost of deferred sampling: the head and its logits."""
    assert model.head is not None, "deferred sampling needs a language model head"
    head = as_matrix(params[model.head])
    logit_bytes = shape.rows * model.vocab_size * _LOGIT_BYTES
    return Cost(
        flops=2 * shape.rows * head.num_weights,
        read_bytes=head.num_bytes + logit_bytes,
        written_bytes=logit_bytes,
    )


def helper_cost(programs: ProgramSet, helper: Helper) -> Cost:
    """Return the cost of allocating cache and state, or of writing one slot's state."""
    state = tree_bytes(programs.state)
    if helper is Helper.ALLOCATE:
        return Cost(flops=0, read_bytes=0, written_bytes=tree_bytes(programs.cache) + state)
    row = state // jax.tree.leaves(programs.state)[0].shape[0]
    return Cost(flops=0, read_bytes=row, written_bytes=row)


def _itemsize(dtype: DTypeLike) -> int:
    return int(np.dtype(dtype).itemsize)
