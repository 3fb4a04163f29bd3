"""KV caches of a step: the page arrays of every pool, and each layer's view of them.

A view consists of the layer's array and of its group's page table for the step. Groups of one pool
share arrays, so layers update them one after the other.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxserve.api.caches import (
    CacheGroup,
    CacheLayout,
    KeyValuePages,
    PagedGroup,
    PageKind,
    StateGroup,
    StatePages,
    WindowGroup,
)
from jaxserve.execution.attention import AttentionPlan
from jaxserve.execution.batch import StepInput
from jaxserve.execution.context import StepContext
from jaxserve.execution.shapes import StepShape
from jaxserve.parallel.sharding import ShardingPlan
from pallas_kernels import paged_attention
from pallas_kernels.paged_attention import AttentionSpec, PagedBatch

# One entry per array of the layout: keys and values, or a tuple of state arrays.
type KVCache = tuple[Any, ...]


def describe_caches(
    layout: CacheLayout,
    attention: AttentionPlan,
    sharding: ShardingPlan,
    *,
    num_pages: tuple[int, ...],
) -> tuple[Any, ...]:
    """Describe the caches before they are allocated, with shapes, dtypes and shardings.

    num_pages: pages of each pool. Returns trees of jax.ShapeDtypeStruct.
    """
    found: list[Any] = []
    for pool, count in zip(layout.pools, num_pages, strict=True):
        describe = partial(_DESCRIBE[type(pool.pages)], pool.pages, attention, sharding, count)
        found += [describe() for _ in range(pool.num_arrays)]
    return tuple(found)


def _describe_keys(
    pages: KeyValuePages, attention: AttentionPlan, sharding: ShardingPlan, num_pages: int
) -> jax.ShapeDtypeStruct:
    spec = attention.cache_spec(pages, num_pages)
    place = sharding.sharding(spec.axes, spec.shape)
    return jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=place)


def _describe_states(
    pages: StatePages, attention: AttentionPlan, sharding: ShardingPlan, num_pages: int
) -> tuple[jax.ShapeDtypeStruct, ...]:
    del attention
    return tuple(
        jax.ShapeDtypeStruct(
            (num_pages, *array.shape),
            np.dtype(array.dtype),
            sharding=sharding.sharding(("pages", *array.axes), (num_pages, *array.shape)),
        )
        for array in pages.arrays
    )


def allocate_caches(described: tuple[Any, ...], context: StepContext) -> KVCache:
    """Allocate empty caches, sharded over the devices; traced."""
    return tuple(
        _ALLOCATE[type(context.caches.pages_of(number))](each, context)
        for number, each in enumerate(described)
    )


def _allocate_keys(described: jax.ShapeDtypeStruct, context: StepContext) -> jax.Array:
    sharding = described.sharding
    assert isinstance(sharding, NamedSharding)
    part = jax.ShapeDtypeStruct(sharding.shard_shape(described.shape), described.dtype)
    made: jax.Array = jax.shard_map(
        partial(paged_attention.empty_cache, part, backend=context.attention.backend),
        mesh=context.mesh,
        in_specs=(),
        out_specs=sharding.spec,
        check_vma=False,
    )()
    return made


def _allocate_states(
    described: tuple[jax.ShapeDtypeStruct, ...], context: StepContext
) -> tuple[jax.Array, ...]:
    del context
    return tuple(jnp.zeros(array.shape, array.dtype) for array in described)


_DESCRIBE: dict[type[PageKind], Callable[..., Any]] = {
    KeyValuePages: _describe_keys,
    StatePages: _describe_states,
}
_ALLOCATE: dict[type[PageKind], Callable[..., Any]] = {
    KeyValuePages: _allocate_keys,
    StatePages: _allocate_states,
}


class CacheArrays:
    """Cache arrays of a step during tracing; each layer replaces its array by the update."""

    def __init__(self, arrays: KVCache) -> None:
        self._arrays = list(arrays)

    def __getitem__(self, number: int) -> Any:
        return self._arrays[number]

    def __setitem__(self, number: int, array: Any) -> None:
        self._arrays[number] = array

    @property
    def all(self) -> KVCache:
        """The current arrays."""
        return tuple(self._arrays)


def layer_caches(
    arrays: CacheArrays, inputs: StepInput, shape: StepShape, context: StepContext
) -> tuple[Any, ...]:
    """Return each layer's view of the caches in a step; None for layers without a cache."""
    layout = context.caches
    views = [_VIEWS[type(group)](group, inputs, shape, context) for group in layout.groups]
    return tuple(
        None if place is None else views[place.group](arrays, place.array)
        for place in layout.places
    )


def _columns(group: CacheGroup, inputs: StepInput) -> jax.Array:
    """Return a group's columns of the page table: int32[sequences, columns]."""
    return inputs.page_table[:, group.first_column : group.first_column + group.num_columns]


@dataclass(frozen=True)
class PagedCache:
    """Keys and values of a layer, for `PagedAttend`."""

    batch: PagedBatch
    arrays: CacheArrays
    number: int


def _paged_views(
    group: CacheGroup, inputs: StepInput, shape: StepShape, context: StepContext
) -> Callable[[CacheArrays, int], PagedCache]:
    del context
    return partial(PagedCache, _paged_batch(inputs, shape, _columns(group, inputs)))


def _window_views(
    group: CacheGroup, inputs: StepInput, shape: StepShape, context: StepContext
) -> Callable[[CacheArrays, int], PagedCache]:
    table = _columns(group, inputs)
    # Attention within a window is translation-invariant. Counting positions from the oldest kept
    # page hides the freed pages from kernels.
    skipped = table[:, 0] * context.attention.page_size
    batch = replace(
        _paged_batch(inputs, shape, table[:, 1:]),
        kv_lengths=inputs.kv_lengths - skipped,
        positions=jnp.maximum(inputs.positions - skipped[inputs.row_sequences], 0),
    )
    return partial(PagedCache, batch)


def _paged_batch(inputs: StepInput, shape: StepShape, page_table: jax.Array) -> PagedBatch:
    return PagedBatch(
        page_table=page_table,
        query_starts=inputs.query_starts,
        kv_lengths=inputs.kv_lengths,
        row_sequences=inputs.row_sequences,
        positions=inputs.positions,
        max_query_length=shape.max_query_length,
    )


@dataclass(frozen=True)
class StateCache:
    """Recurrent states of a layer; see layers.recurrent.States."""

    pages: jax.Array  # int32[sequences, 2], pages to read from and to write to
    is_new: jax.Array  # bool[sequences], the sequence begins in this step
    query_starts: jax.Array
    row_sequences: jax.Array
    arrays: CacheArrays
    number: int

    def read(self) -> tuple[jax.Array, ...]:
        """See States."""

        def rows(array: jax.Array) -> jax.Array:
            found = array[self.pages[:, 0]]
            is_new = self.is_new.reshape(-1, *[1] * (found.ndim - 1))
            return jnp.where(is_new, jnp.zeros_like(found), found)

        return tuple(map(rows, self.arrays[self.number]))

    def write(self, states: tuple[jax.Array, ...]) -> "StateCache":
        """See States."""
        self.arrays[self.number] = tuple(
            array.at[self.pages[:, 1]].set(new.astype(array.dtype))
            for array, new in zip(self.arrays[self.number], states, strict=True)
        )
        return self


def _state_views(
    group: CacheGroup, inputs: StepInput, shape: StepShape, context: StepContext
) -> Callable[[CacheArrays, int], StateCache]:
    del shape, context
    num_sequences = inputs.kv_lengths.shape[0]
    rows = jnp.arange(inputs.row_sequences.shape[0])
    return partial(
        StateCache,
        _columns(group, inputs),
        inputs.kv_lengths == jnp.diff(inputs.query_starts),
        inputs.query_starts,
        jnp.where(rows < inputs.query_starts[-1], inputs.row_sequences, num_sequences),
    )


# Cache view of each kind of group.
_VIEWS: dict[type[CacheGroup], Callable[..., Callable[[CacheArrays, int], Any]]] = {
    PagedGroup: _paged_views,
    WindowGroup: _window_views,
    StateGroup: _state_views,
}


@dataclass(frozen=True)
class PagedAttend:
    """Paged attention of a decoder layer; each device computes its own heads."""

    context: StepContext

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array | None,
        cache: PagedCache,
        spec: AttentionSpec,
    ) -> tuple[jax.Array, PagedCache]:
        """See layers.attention.Attend."""
        arrays, number = cache.arrays, cache.number
        pages = self.context.caches.pages_of(number)
        assert isinstance(pages, KeyValuePages), "attention needs pages of keys and values"
        attend = _attend_sharded(self.context, pages)
        out, arrays[number] = attend((q, k, v), arrays[number], cache.batch, spec)
        return out, cache


# Jitted separately, so that layers with equal arguments share one trace and lowering, which takes
# most of a second for a kernel. XLA inlines the calls.
@lru_cache(maxsize=16)
def _attend_sharded(
    context: StepContext, kind: KeyValuePages
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    described = context.attention.cache_spec(kind, 1)
    pages = context.sharding.spec(described.axes, described.shape)
    heads, whole = context.sharding.places("tokens", "heads", "head_dim"), PartitionSpec()
    kv_heads = whole if kind.is_replicated else heads

    @jax.jit
    def attend(
        qkv: tuple[jax.Array, jax.Array, jax.Array | None],
        cache: jax.Array,
        batch: paged_attention.PagedBatch,
        spec: AttentionSpec,
    ) -> tuple[jax.Array, jax.Array]:
        sharded = jax.shard_map(
            partial(
                paged_attention.attend,
                backend=context.attention.backend,
                target=context.attention.target,
            ),
            mesh=context.mesh,
            in_specs=(
                *(heads, kv_heads, kv_heads),
                pages,
                whole,
                spec.partitioned(heads=context.sharding.places("heads"), tokens=whole),
            ),
            out_specs=(heads, pages),
            check_vma=False,
        )
        result: tuple[jax.Array, jax.Array] = sharded(*qkv, cache, batch, spec)
        return result

    return attend
