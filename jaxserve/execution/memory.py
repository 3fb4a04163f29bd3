"""Memory plan of a device, computed from shapes before anything is loaded."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, prod

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxserve.api.caches import CacheLayout
from jaxserve.api.engine_config import DEFAULT_MAX_LOGPROBS
from jaxserve.errors import MemoryPlanError
from jaxserve.execution.attention import AttentionPlan
from jaxserve.execution.caches import describe_caches
from jaxserve.execution.heads.score import SCORED_ROWS
from jaxserve.execution.host_memory import free_bytes
from jaxserve.execution.shapes import Feature, StepShape
from jaxserve.models import ModelConfig
from jaxserve.parallel.sharding import ShardingPlan

GIB = 1 << 30

# Size of the cache on a CPU, unless one sequence of full length needs more.
CPU_CACHE_BYTES = 4 * GIB


# Logits-sized arrays that each feature keeps alive at once.
_COPIES = {Feature.TOKENS: 2, Feature.RANDOM: 4, Feature.ADJUST: 2, Feature.LOGPROBS: 1}
_COPIES_OF_SCORED = 4

# Share of a GPU's memory pool to leave free: the allocator fragments the pool, and a step's
# workspace needs one contiguous block.
GPU_SLACK = 0.03

# Safety factor for small arrays and for differences between compilers.
_MARGIN = 1.25

# Activation copies on this target relative to others, from memory analyses of compiled programs
# (docs/compile.md): 2.1 GiB for 8192 rows of Llama 3.1 8B.
_ROW_COPIES = {"v7x": 2.2}


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes on each device of the mesh, and the number of pages that fit.

    limit: usable bytes. state: slot state. workspace: temporaries of the largest step. page: one
    page of all layers. recurrent: one state of all recurrent layers.
    """

    limit: int
    weights: int
    state: int
    workspace: int
    page: int
    page_size: int
    num_pages: int
    recurrent: int = 0
    num_states: int = 0

    @property
    def cache(self) -> int:
        """Bytes of KV pages and recurrent states."""
        return self.num_pages * self.page + self.num_states * self.recurrent

    @property
    def free(self) -> int:
        """Bytes within the limit that stay unused."""
        return self.limit - self.weights - self.state - self.workspace - self.cache

    def lines(self) -> list[str]:
        """Return the plan as the lines of a table."""
        tokens = (self.num_pages - 1) * self.page_size
        pages = f"{self.num_pages} x {self.page_size} = {tokens} tokens"
        states = f"{self.num_states}, of sequences and of prefixes"
        recurrent = self.num_states * self.recurrent
        rows = (
            ("weights", self.weights, ""),
            # An encoder has no KV pages.
            *([("KV pages", self.num_pages * self.page, pages)] if self.page else []),
            *([("states", recurrent, states)] if recurrent else []),
            ("slot state", self.state, ""),
            ("workspace", self.workspace, "estimate for the largest step"),
            ("free", self.free, f"of {show_bytes(self.limit)} usable"),
        )
        return [f"{name:<11}{show_bytes(size):>12}  {note}".rstrip() for name, size, note in rows]


def show_bytes(size: int) -> str:
    """Format a size with a binary unit."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def tree_bytes(tree: object) -> int:
    """Return the bytes of a tree of (abstract) arrays on one device."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
        total += prod(shape) * np.dtype(leaf.dtype).itemsize
    return total


@dataclass(frozen=True)
class PageSizes:
    """Bytes per device of a page of tokens and of a recurrent state, over all layers."""

    tokens: int
    state: int


def page_sizes(layout: CacheLayout, attention: AttentionPlan, sharding: ShardingPlan) -> PageSizes:
    """Return the bytes of a main-pool page with its share of other pools, and of a state."""
    arrays = describe_caches(layout, attention, sharding, num_pages=(1,) * len(layout.pools))
    share = layout.max_pages(layout.main_pool)
    first = tokens = state = 0
    for number, pool in enumerate(layout.pools):
        num_bytes = tree_bytes(arrays[first : first + pool.num_arrays])
        first += pool.num_arrays
        if pool.pages.holds_tokens:
            tokens += num_bytes * layout.max_pages(number)
        else:
            state += num_bytes
    return PageSizes(tokens=-(-tokens // share), state=state)


def usable_bytes(
    devices: Sequence[jax.Device],
    fraction: float,
    *,
    memory_bytes: int | None = None,
    host_bytes: int | None = None,
) -> int:
    """Return the usable bytes of each device: a fraction of its memory.

    memory_bytes: memory of each device, for devices that are not attached. host_bytes: free memory
    of the host, by default measured; virtual CPU devices share it. On a GPU the limit is JAX's
    memory pool, less GPU_SLACK. The pool is the same fraction, set before JAX starts
    (XLA_PYTHON_CLIENT_MEM_FRACTION).
    """
    platform = devices[0].platform
    if platform == "cpu":
        host_bytes = free_bytes() if host_bytes is None else host_bytes
        return int(host_bytes * fraction) // len(devices)
    if memory_bytes is not None:
        limit = int(memory_bytes * fraction)
    else:
        limit = min(int(device.memory_stats()["bytes_limit"]) for device in devices)
        limit = limit if platform == "gpu" else int(limit * fraction)
    return int(limit * (1 - GPU_SLACK)) if platform == "gpu" else limit


def workspace_bytes(
    config: ModelConfig,
    shapes: Iterable[StepShape],
    *,
    attention: AttentionPlan,
    dtype: DTypeLike,
    max_logprobs: int = DEFAULT_MAX_LOGPROBS,
) -> int:
    """Estimate the bytes of temporaries of the largest step, per device.

    Attention, MLP and sampling run one after the other, so the estimate is their maximum. Sampling
    counts several copies of the float32 logits. tests/execution/test_memory.py compares the
    estimate with compiled programs.
    """
    itemsize = jnp.dtype(dtype).itemsize
    row_copies = _ROW_COPIES.get(attention.target.name, 1)
    layers = set(config.layers)
    largest = 0.0
    for shape in shapes:
        stream = 2 * shape.tokens * config.embed * itemsize
        attending = 0
        if config.is_causal:
            attending = attention.workspace_bytes(
                num_tokens=shape.tokens,
                num_sequences=shape.sequences,
                max_query_length=shape.max_query_length,
            )
        largest_layer = max(
            layer.workspace_bytes(
                shape.tokens,
                num_sequences=shape.sequences,
                attending=attending,
                devices=attention.devices,
                itemsize=itemsize,
            )
            for layer in layers
        )
        is_scored = Feature.PROMPT_LOGPROBS in shape.features
        num_rows = shape.sequences * sum(_COPIES.get(each, 0) for each in shape.features)
        if is_scored:
            num_rows = max(num_rows, SCORED_ROWS * _COPIES_OF_SCORED)
        logits = num_rows * config.vocab_size * 4
        if is_scored:
            # One id and one score per alternative and token.
            logits += shape.tokens * max_logprobs * 8
        rows = stream + largest_layer
        largest = max(largest, row_copies * rows, logits)
    return int(largest * _MARGIN)


class ContextMemoryError(MemoryPlanError):
    """The model fits, but the KV cache of one sequence of full length does not.

    num_tokens: the longest sequence that fits, 0 if none does.
    """

    def __init__(self, message: str, *, num_tokens: int, needed: float) -> None:
        super().__init__(message, needed=needed)
        self.num_tokens = num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedBytes:
    """Bytes per device that do not depend on the number of cache pages."""

    weights: int
    state: int
    workspace: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLimits:
    """Limits of the cache, in order of precedence; None means no limit.

    num_pages: exact number of pages. num_bytes: bytes per device, without the null page.
    usual_bytes: bytes per device, exceeded only if one sequence of full length needs more.
    useful_pages: maximum number of pages, ignored if num_pages is given.
    """

    num_pages: int | None = None
    num_bytes: int | None = None
    usual_bytes: int | None = None
    useful_pages: int | None = None


def plan_memory(
    *,
    limit: int,
    fixed: FixedBytes,
    pages: PageSizes,
    page_size: int,
    layout: CacheLayout,
    num_states: int = 0,
    cache: CacheLimits,
) -> MemoryPlan:
    """Compute the number of cache pages that fit within `limit` bytes per device.

    page_size: tokens per page. num_states: number of recurrent states. Raises MemoryPlanError if
    weights and workspace do not fit, ContextMemoryError if one sequence of full length does not.
    """
    weights, state, workspace = fixed.weights, fixed.state, fixed.workspace
    page, recurrent, num_pages = pages.tokens, pages.state, cache.num_pages
    fixed_bytes = weights + state + workspace + num_states * recurrent
    pages_per_sequence = layout.max_pages(layout.main_pool)
    needed_pages = pages_per_sequence + 1  # the null page holds no tokens
    needed = (fixed_bytes + needed_pages * page) / limit if limit > 0 else inf
    room = limit - fixed_bytes
    parts = (
        f"weights {show_bytes(weights)}, slot state {show_bytes(state + num_states * recurrent)}"
        f" and workspace {show_bytes(workspace)}"
    )
    if room < 0:
        raise MemoryPlanError(
            f"The model does not fit: {parts} need {show_bytes(fixed_bytes)} of {show_bytes(limit)}"
            " usable",
            needed=needed,
        )
    asked = ""
    if num_pages is not None:
        asked = f"{num_pages} pages (--num-gpu-blocks-override)"
    else:
        num_pages = room // page
        if cache.num_bytes is not None:
            num_pages = cache.num_bytes // page + 1
            asked = f"{show_bytes(cache.num_bytes)} (--kv-cache-memory-bytes)"
        elif cache.usual_bytes is not None:
            num_pages = min(num_pages, max(cache.usual_bytes // page + 1, needed_pages))
        if cache.useful_pages is not None:
            num_pages = min(num_pages, cache.useful_pages)
    if num_pages * page > room:
        raise MemoryPlanError(
            f"The KV cache does not fit: {asked} need {show_bytes(num_pages * page)}, and"
            f" {show_bytes(room)} are left beside {parts}",
            needed=(fixed_bytes + num_pages * page) / limit,
        )
    if num_pages < needed_pages:
        num_tokens = layout.longest_sequence(max(num_pages - 1, 0), page_size)
        held = f"{asked} hold {num_tokens}" if asked else f"there is room for {num_tokens}"
        raise ContextMemoryError(
            f"The KV cache of one sequence of {layout.max_tokens(page_size)} tokens does not fit:"
            f" it needs {show_bytes(needed_pages * page)}, and {held} beside {parts}, of"
            f" {show_bytes(limit)} usable",
            num_tokens=num_tokens,
            needed=needed,
        )
    return MemoryPlan(
        limit=limit,
        weights=weights,
        state=state,
        workspace=workspace,
        page=page,
        page_size=page_size,
        num_pages=num_pages,
        recurrent=recurrent,
        num_states=num_states,
    )
