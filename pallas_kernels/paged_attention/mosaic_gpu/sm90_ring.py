"""Ring buffer of tiles of keys and values on Hopper, filled by TMA page by page."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.paged_attention.batch import AttentionConfig
from pallas_kernels.paged_attention.mosaic_gpu.tile import Item

KEYS, VALUES = 0, 1  # planes of the cache

type Pages = list[tuple[jax.Array, jax.Array]]  # page and first offset of each box of a tile


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of a kernel.

    warpgroups: number of computing warpgroups, of `tokens` query tokens each. keys: keys per tile.
    stages: tiles in the ring buffer. is_split: whether a thread block computes a partial result
    over some of the keys and fetches its own tiles; otherwise another warpgroup fetches.
    """

    warpgroups: int
    tokens: int
    keys: int
    stages: int
    is_split: bool

    @property
    def num_threads(self) -> int:
        """Number of warpgroups, which are threads to Pallas."""
        return self.warpgroups if self.is_split else self.warpgroups + 1


@dataclass(frozen=True, kw_only=True)
class Ring:
    """Ring buffer in shared memory for the tiles of one item and key/value head.

    cache, page_table: references to the operands. slots: for each plane, a reference to
    [stages, keys, head_dim]. ready, free: for each plane, one barrier per slot. Without `free`, the
    warpgroup that has read a slot also refills it.
    """

    plan: Plan
    config: AttentionConfig
    item: Item
    kv_head: jax.Array
    cache: Any
    page_table: Any
    slots: Any
    ready: Any
    free: Any | None

    @property
    def planes(self) -> range:
        """Planes of the cache, which are fetched in this order."""
        return range(len(self.ready))

    @property
    def first_tile(self) -> jax.Array:
        """Index, in the sequence, of the item's first tile."""
        return self.item.key_start // self.plan.keys

    @property
    def num_tiles(self) -> jax.Array:
        """Number of tiles with keys of the item."""
        return pl.cdiv(self.item.key_end, self.plan.keys) - self.first_tile

    def first_key(self, tile: jax.Array | int) -> jax.Array:
        """Return the position of a tile's first key in its sequence."""
        return (self.first_tile + tile) * self.plan.keys

    def pages(self, tile: jax.Array | int) -> Pages:
        """Return page and offset of each box of a tile; a box is a page or a part of one."""
        page_size = self.config.page_size
        last = (self.item.key_end - 1) // page_size
        places = []
        for start in range(0, self.plan.keys, page_size):
            key = self.first_key(tile) + start
            # Beyond the last key, any valid page will do; the page table may have invalid ones.
            page = self.page_table[self.item.sequence, jnp.minimum(key // page_size, last)]
            places.append((page, lax.rem(key, page_size)))
        return places

    def fetch(self, plane: int, tile: jax.Array | int, pages: Pages) -> None:
        """Start to fill the slot of a tile."""
        slot = tile % self.plan.stages
        rows = min(self.plan.keys, self.config.page_size)
        for i, (page, offset) in enumerate(pages):
            plgpu.copy_gmem_to_smem(
                self.cache.at[plane, page, self.kv_head, pl.ds(offset, rows)],
                self.slots[plane].at[slot, pl.ds(i * rows, rows)],
                self.ready[plane].at[slot],
            )

    def fetch_first(self) -> None:
        """Start to fill all slots."""
        # Read the page table for all tiles before starting the copies.
        for tile, pages in [(tile, self.pages(tile)) for tile in range(self.plan.stages)]:

            @pl.when(tile < self.num_tiles)
            def _fill(tile: int = tile, pages: Pages = pages) -> None:
                for plane in self.planes:
                    self.fetch(plane, tile, pages)

    def fetch_all(self) -> None:
        """Keep the slots filled; runs in the fetching warpgroup."""
        assert self.free is not None
        free, stages = self.free, self.plan.stages

        @pl.loop(0, self.num_tiles)
        def _fill(tile: jax.Array) -> None:
            pages = self.pages(tile)
            for plane in self.planes:

                @pl.when(tile >= stages)
                def _wait(plane: int = plane) -> None:
                    plgpu.barrier_wait(free[plane].at[lax.rem(tile, stages)])

                self.fetch(plane, tile, pages)

        # Wait for the last phase of each barrier before exiting.
        @pl.loop(jnp.maximum(self.num_tiles, stages), self.num_tiles + stages)
        def _drain(tile: jax.Array) -> None:
            for plane in self.planes:
                plgpu.barrier_wait(free[plane].at[lax.rem(tile, stages)])

    def next_pages(self, tile: jax.Array) -> Pages:
        """Return the boxes of the tile that this warpgroup fetches into the slot of `tile`."""
        return self.pages(tile + self.plan.stages) if self.free is None else []

    def get(self, plane: int, tile: jax.Array) -> Any:
        """Wait for a tile, and return the reference to it: [keys, head_dim]."""
        slot = lax.rem(tile, self.plan.stages)
        plgpu.barrier_wait(self.ready[plane].at[slot])
        return self.slots[plane].at[slot]

    def release(self, plane: int, tile: jax.Array, next_pages: Pages) -> None:
        """Release the slot of a tile that was read, for the next tile, which is at `next_pages`."""
        if self.free is not None:
            plgpu.barrier_arrive(self.free[plane].at[lax.rem(tile, self.plan.stages)])
            return

        @pl.when(tile + self.plan.stages < self.num_tiles)
        def _refill() -> None:
            self.fetch(plane, tile + self.plan.stages, next_pages)
