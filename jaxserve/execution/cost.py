"""What a step costs at least, counted from shapes: FLOPs, bytes of device memory, time.

The count is the same for every target, so that targets compare; compilers' own estimates are not
(XLA gives none for a GPU that is absent). It is a bound: activations that stay in caches, and what
devices send each other, count as nothing.
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
from jaxserve.execution.shapes import DrawShape, Feature, StepShape
from jaxserve.models import ModelConfig, Params
from jaxserve.quantization.matrix import as_matrix, matrices
from pallas_kernels.targets import Target

type IntArray = np.ndarray[Any, np.dtype[np.integer[Any]]]

_LOGIT_BYTES = 4  # float32, written once and read once
# What a slot remembers of each token: seen, counts and bias (`state.SlotState`).
_MEMORY_BYTES = 1 + 4 + 4


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs, and bytes read and written, of one device."""

    flops: int
    read_bytes: int
    written_bytes: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes that move, either way."""
        return self.read_bytes + self.written_bytes

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


class StepCosts:
    """Counts what steps of one engine cost, each in a microsecond or two.

    Weights are read once a step, keys and values once per sequence; padding costs nothing.
    params: arrays, or abstract ones, with shardings.
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
        # FLOPs of a pair and bytes of a key, over the layers that have the same window.
        self._windows: dict[int | None, tuple[int, int]] = {}
        for work in works:
            pair, key = self._windows.get(work.sliding_window, (0, 0))
            both = (pair + work.pair_flops, key + work.key_bytes)
            self._windows[work.sliding_window] = both
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
        """Count a step whose rows compute `lengths` tokens each from the positions `starts` on.

        num_tokens: the sum of the lengths. num_sampled: rows that draw a token, which alone need
        logits, but for those of every token with Feature.PROMPT_LOGPROBS.
        """
        flops = key_bytes = 0  # of attention
        for window, (pair, key) in self._windows.items():
            num_pairs, num_keys = _attended(starts, lengths, num_tokens, window)
            flops += num_pairs * pair
            key_bytes += num_keys * key
        num_logits = num_sampled + (num_tokens if Feature.PROMPT_LOGPROBS in features else 0)
        remembered = num_sampled * self._remembered_bytes if Feature.ADJUST in features else 0
        return Cost(
            flops=self._token_flops * num_tokens + self._logit_flops * num_logits + flops,
            read_bytes=self._weights
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
        """Return what the scheduler is to know of these costs, on a device of such a balance.

        attention_efficiency: FLOP/s of attention over prompts, as a share of those of products, and
        bytes/s of attention of decodes, as a share of those of reading weights. product_speed: of
        products with quantized weights, as a multiple of the others'.
        Layers with a sliding window count for nothing: what they attend to does not grow.
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
    """Return pairs of a query and a key, and keys that any query sees, in one layer."""
    num_rows = len(starts)
    if num_tokens == num_rows:
        keys = starts + 1 if window is None else np.minimum(starts + 1, window)
        num_keys = int(keys.sum())
        return num_keys, num_keys
    starts, lengths = starts.astype(np.int64), lengths.astype(np.int64)
    if window is None:
        pairs = lengths * starts + lengths * (lengths + 1) // 2
        return int(pairs.sum()), int(starts.sum()) + num_tokens
    # The first rows of a chunk see all that is before them, the others a whole window.
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
    """Count a full step: no padding, and every sequence `context_len` tokens long when it is done.

    Rows divide evenly among the sequences, whose context is at least their rows. params: abstract,
    with shardings.
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


def draw_cost(model: ModelConfig, shape: DrawShape, *, params: Params) -> Cost:
    """Count a draw: the head once, and its logits."""
    assert model.head is not None, "only a head for tokens draws"
    head = as_matrix(params[model.head])
    logit_bytes = shape.rows * model.vocab_size * _LOGIT_BYTES
    return Cost(
        flops=2 * shape.rows * head.num_weights,
        read_bytes=head.num_bytes + logit_bytes,
        written_bytes=logit_bytes,
    )


def helper_cost(programs: ProgramSet, helper: Helper) -> Cost:
    """Count what moves when cache and state are made, or one slot's row of the state is written."""
    state = tree_bytes(programs.state)
    if helper is Helper.ALLOCATE:
        return Cost(flops=0, read_bytes=0, written_bytes=tree_bytes(programs.cache) + state)
    row = state // jax.tree.leaves(programs.state)[0].shape[0]
    return Cost(flops=0, read_bytes=row, written_bytes=row)


def _itemsize(dtype: DTypeLike) -> int:
    return int(np.dtype(dtype).itemsize)
