"""Caches of a model's layers, and their division into groups and pools.

A model lists one spec per layer: `Paged`, `Window`, `Latent`, `Recurrent`, `Shared` or `Uncached`.
Layers with equal specs form a group, which has columns in the page table and a manager in the
scheduler (`engine/cache_group.py`). Groups with pages of the same layout share a pool.

    layers    0 Window   1 Paged   2 Window   3 Paged   4 Recurrent
    groups    A: layers 0, 2 (Window)   B: layers 1, 3 (Paged)   C: layer 4 (Recurrent)
    pools     0: arrays 0, 1, used by A and B alike              1: array 2, used by C

A pool has one array for each layer of a group, and a page number refers to a page in each of these
arrays. So a page can hold tokens of either group, and memory goes to the group that needs it.
"""

from bisect import bisect_right
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, Protocol

# Limit of the padded number of layers of a group relative to its layers. A group takes a page in
# every array of its pool, even in arrays for which it has no layer.
MAX_PADDED_LAYERS = 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheGroup:
    """Layers with equal cache specs.

    max_pages: most pages that one sequence has at once. layers: indices of the layers in the model,
    ascending. pool: index of the group's pool. first_column: index of the group's first column in
    the page table.
    """

    max_pages: int
    layers: tuple[int, ...] = ()
    pool: int = 0
    first_column: int = 0

    @property
    def num_columns(self) -> int:
        """Number of columns of the page table that the group uses."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedGroup(CacheGroup):
    """Layers that keep every token. Column i is the page of tokens [i * page_size, ...)."""

    @property
    def num_columns(self) -> int:
        """See CacheGroup."""
        return self.max_pages


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowGroup(CacheGroup):
    """Layers that attend to the last `window` tokens; pages behind the window are released.

    The first column is the index of the oldest page that the sequence still has. The others are
    this page and those after it.
    """

    window: int

    @property
    def num_columns(self) -> int:
        """See CacheGroup."""
        return 1 + self.max_pages


@dataclass(frozen=True, slots=True, kw_only=True)
class StateGroup(CacheGroup):
    """Layers that keep one state per sequence, in a page that each step reads and overwrites.

    The columns are the page that a step reads and the page that it writes. They differ after a
    checkpoint, which is a state saved at a page boundary. checkpoint_interval: pages of
    tokens between two checkpoints of a sequence.
    """

    # One page to write, and a checkpoint to start from.
    max_pages: int = 2
    checkpoint_interval: int

    @property
    def num_columns(self) -> int:
        """See CacheGroup."""
        return 2


@dataclass(frozen=True, slots=True)
class KeyValuePages:
    """Pages of keys and values.

    value_dim: values are the first value_dim dimensions of the keys and take no memory; None: they
    are stored, and have head_dim dimensions.
    """

    holds_tokens: ClassVar[bool] = True

    kv_heads: int
    head_dim: int
    value_dim: int | None = None

    @property
    def is_replicated(self) -> bool:
        """Whether every device holds all heads, because queries of all devices share them."""
        return self.value_dim is not None


@dataclass(frozen=True, slots=True)
class StateArray:
    """One array of a state: shape for one sequence, dtype, and name of each axis."""

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StatePages:
    """Pages that each hold one state, which consists of several arrays."""

    holds_tokens: ClassVar[bool] = False

    arrays: tuple[StateArray, ...]


type PageKind = KeyValuePages | StatePages
type CacheSpec = LayerCache | Shared | Uncached


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSizes:
    """Settings from which the sizes of cache groups are computed.

    tokens_in_flight: most tokens of one sequence in all steps in flight together.
    """

    page_size: int
    max_model_len: int
    tokens_in_flight: int
    checkpoint_interval: int

    def pages_for(self, num_tokens: int) -> int:
        """Return how many pages `num_tokens` tokens need."""
        return -(-num_tokens // self.page_size)


class LayerCache(Hashable, Protocol):
    """Cache spec of one layer. Layers with equal specs form a group."""

    @property
    def pages(self) -> PageKind:
        """Layout of its pages. Groups with equal layouts share a pool."""
        ...

    @property
    def state_bytes(self) -> int:
        """Bytes of a sequence's state, which every step reads and writes."""
        ...

    def group(self, sizes: CacheSizes) -> CacheGroup:
        """Return a group for layers with this spec, with `layers`, `pool` and columns unset."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Paged:
    """Keys and values of every token."""

    state_bytes: ClassVar[int] = 0

    kv_heads: int
    head_dim: int

    @property
    def pages(self) -> KeyValuePages:
        """See LayerCache."""
        return KeyValuePages(self.kv_heads, self.head_dim)

    def group(self, sizes: CacheSizes) -> PagedGroup:
        """See LayerCache."""
        return PagedGroup(max_pages=sizes.pages_for(sizes.max_model_len))


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Keys and values of the last `window` tokens, including the newest."""

    state_bytes: ClassVar[int] = 0

    kv_heads: int
    head_dim: int
    window: int

    @property
    def pages(self) -> KeyValuePages:
        """See LayerCache."""
        return KeyValuePages(self.kv_heads, self.head_dim)

    def group(self, sizes: CacheSizes) -> CacheGroup:
        """See LayerCache. A window as long as the longest sequence keeps every token."""
        if self.window >= sizes.max_model_len:
            return Paged(kv_heads=self.kv_heads, head_dim=self.head_dim).group(sizes)
        # Pages are released after a step that fills a page is committed, so the tokens of the steps
        # in flight need pages too. The window may begin anywhere in its first page.
        kept = sizes.pages_for(self.window - 1 + sizes.tokens_in_flight) + 2
        return WindowGroup(
            max_pages=min(kept, sizes.pages_for(sizes.max_model_len)), window=self.window
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Latent:
    """One latent per token, which is the key of all heads; values are its first value_dim numbers.

    Multi-head latent attention of DeepSeek-V2 (arXiv:2405.04434).
    """

    state_bytes: ClassVar[int] = 0

    latent_dim: int
    value_dim: int

    @property
    def pages(self) -> KeyValuePages:
        """See LayerCache."""
        return KeyValuePages(1, self.latent_dim, self.value_dim)

    def group(self, sizes: CacheSizes) -> PagedGroup:
        """See LayerCache."""
        return PagedGroup(max_pages=sizes.pages_for(sizes.max_model_len))


@dataclass(frozen=True, slots=True)
class Recurrent:
    """A state of fixed size that each token updates."""

    arrays: tuple[StateArray, ...]

    @property
    def pages(self) -> StatePages:
        """See LayerCache."""
        return StatePages(self.arrays)

    @property
    def state_bytes(self) -> int:
        """See LayerCache."""
        # Imported here because the supervisor imports this module and must not load numpy.
        import numpy as np  # noqa: PLC0415

        return sum(prod(each.shape) * np.dtype(each.dtype).itemsize for each in self.arrays)

    def group(self, sizes: CacheSizes) -> StateGroup:
        """See LayerCache."""
        return StateGroup(checkpoint_interval=sizes.checkpoint_interval)


@dataclass(frozen=True, slots=True)
class Shared:
    """No cache of its own: the layer reads the cache of the earlier layer `layer`."""

    state_bytes: ClassVar[int] = 0

    layer: int


@dataclass(frozen=True, slots=True)
class Uncached:
    """No cache: the layer computes each token by itself."""

    state_bytes: ClassVar[int] = 0


@dataclass(frozen=True, slots=True)
class Pool:
    """Pages of one layout. A page number refers to a page in each of `num_arrays` arrays."""

    pages: PageKind
    num_arrays: int


@dataclass(frozen=True, slots=True)
class Place:
    """Cache of a layer: index of its group, and of its array among those of all pools."""

    group: int
    array: int


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """Groups and pools of a model, and the place of each layer, None for uncached layers."""

    groups: tuple[CacheGroup, ...]
    pools: tuple[Pool, ...]
    places: tuple[Place | None, ...]

    @property
    def num_columns(self) -> int:
        """Number of columns of the page table."""
        return sum(group.num_columns for group in self.groups)

    @property
    def main_pool(self) -> int:
        """Index of the pool whose pages users see counted: the first with pages of tokens."""
        return next((i for i, pool in enumerate(self.pools) if pool.pages.holds_tokens), 0)

    def pages_of(self, array: int) -> PageKind:
        """Return the layout of an array's pages."""
        return [pool.pages for pool in self.pools for _ in range(pool.num_arrays)][array]

    def max_pages(self, pool: int) -> int:
        """Return the most pages of a pool that one sequence has at once."""
        return sum(group.max_pages for group in self.groups if group.pool == pool)

    def num_pages(self, num_pages: int, *, num_states: int) -> tuple[int, ...]:
        """Return the number of pages of each pool, including null pages.

        The main pool has `num_pages` and pools of states `num_states`. Other pools of tokens have
        pages in proportion to what a sequence of maximum length needs of each pool.
        """
        main = self.max_pages(self.main_pool)

        def pages(number: int, pool: Pool) -> int:
            if number == self.main_pool:
                return num_pages
            if not pool.pages.holds_tokens:
                return num_states
            own = self.max_pages(number)
            return max(num_pages * own // main, own + 1)

        return tuple(pages(number, pool) for number, pool in enumerate(self.pools))

    def max_tokens(self, page_size: int) -> int:
        """Return the most tokens of a sequence for which any group has pages."""
        return max(group.max_pages for group in self.groups) * page_size

    def longest_sequence(self, num_pages: int, page_size: int) -> int:
        """Return how many tokens a sequence can have with `num_pages` pages of the main pool."""
        most = [group.max_pages for group in self.groups if group.pool == self.main_pool]
        lengths = range(0, self.max_tokens(page_size) + 1, page_size)

        def needed(length: int) -> int:
            return sum(min(length // page_size, count) for count in most)

        return lengths[bisect_right(lengths, num_pages, key=needed) - 1]


def plan_layout(layers: Sequence[CacheSpec], sizes: CacheSizes) -> CacheLayout:
    """Divide the layers of a model into groups and pools.

    A model without caches gets one paged group without layers, so that the scheduler can count
    pages of prompts; these pages take no memory.
    """
    owners = [_owner(layers, number) for number in range(len(layers))]
    by_spec: dict[LayerCache, list[int]] = {}
    for number, layer in enumerate(layers):
        if not isinstance(layer, Shared | Uncached):
            by_spec.setdefault(layer, []).append(number)
    pools: list[Pool] = []
    groups: list[CacheGroup] = []
    places: dict[int, Place] = {}
    first_array = column = 0
    for pages in dict.fromkeys(spec.pages for spec in by_spec):
        members = {spec: found for spec, found in by_spec.items() if spec.pages == pages}
        size = _group_size([len(found) for found in members.values()])
        for spec, found in members.items():
            for first in range(0, len(found), size):
                part = tuple(found[first : first + size])
                for offset, number in enumerate(part):
                    places[number] = Place(len(groups), first_array + offset)
                group = spec.group(sizes)
                groups.append(replace(group, layers=part, pool=len(pools), first_column=column))
                column += group.num_columns
        pools.append(Pool(pages, size))
        first_array += size
    if not groups:
        groups = [PagedGroup(max_pages=sizes.pages_for(sizes.max_model_len))]
        pools = [Pool(KeyValuePages(0, 0), 0)]
    return CacheLayout(tuple(groups), tuple(pools), tuple(map(places.get, owners)))


def _owner(layers: Sequence[CacheSpec], number: int) -> int:
    """Return the index of the layer whose cache a layer reads."""
    while isinstance(layer := layers[number], Shared):
        if not 0 <= layer.layer < number:
            raise ValueError(f"layer {number} can share with an earlier layer, got {layer.layer}")
        number = layer.layer
    return number


def _group_size(counts: list[int]) -> int:
    """Return the number of layers per group: the most that pads no count beyond the limit."""
    return next(
        size
        for size in range(max(counts), 0, -1)
        if all(-(-count // size) * size <= MAX_PADDED_LAYERS * count for count in counts)
    )
