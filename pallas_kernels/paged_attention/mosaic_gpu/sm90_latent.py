"""Paged attention over latents on Hopper: the values are the first part of the keys.

A token has one row, which is the key of all heads, and its first dimensions are their value (576
and 512 in DeepSeek-V2, arXiv:2405.04434). A tile of keys is fetched once and serves as both.

A thread block has 64 rows: query tokens times heads, where heads are padded to a multiple of 8. Its
results are [64, 512] in float32, too many for the registers of one warpgroup, so each of two
warpgroups computes half of their columns. Both compute all scores: exchanging halves of them would
need two barriers per tile. A third warpgroup fetches. A block occupies a whole core, so work is
spread over half as many blocks as in sm90.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32, Shaped

from pallas_kernels.dispatch import Unsupported
from pallas_kernels.paged_attention.batch import AttentionConfig
from pallas_kernels.paged_attention.mosaic_gpu import tile as tiles
from pallas_kernels.paged_attention.mosaic_gpu.combine import interpreter
from pallas_kernels.paged_attention.mosaic_gpu.sm90_body import (
    COMPUTE_REGISTERS,
    FETCH_REGISTERS,
    ROWS,
    add_product,
    copy_written,
    simulated_product,
)
from pallas_kernels.paged_attention.mosaic_gpu.sm90_ring import KEYS, Pages, Plan, Ring
from pallas_kernels.paged_attention.mosaic_gpu.tile import UNSEEN, spread
from pallas_kernels.paged_attention.mosaic_gpu.work import NUM_ROWS, Blocks
from pallas_kernels.targets import Target

# A tile of 64 keys of 1152 bytes, twice, and the queries fill the shared memory of a core.
_TILE_KEYS, _STAGES = 64, 2

# Warpgroups that compute, with an equal part of the values each.
_PARTS = 2

# Dimensions in a row of 128 bytes, the widest swizzle, and the most that TMA copies at once.
_SWIZZLE = 128
_COLUMNS = _SWIZZLE // 2
_MOST_COLUMNS = 256

# Heads that share a tile's rows begin at a multiple of 8 rows, as swizzled tiles do.
_HEADS = 8

_TILE = plgpu.Layout.WGMMA
_PER_ROW = plgpu.Layout.WGMMA.reduce(1)

type _Softmax = tuple[jax.Array, jax.Array, jax.Array]  # maximum, sum and weighted values by row


def check(config: AttentionConfig) -> None:
    """See backend.Kernels."""
    if config.kv_heads != 1:
        raise Unsupported(f"all heads share one latent, got {config.kv_heads} KV heads")
    if config.cache_dtype != config.dtype:
        raise Unsupported(
            f"wgmma multiplies {config.dtype} queries by latents of the same, not of"
            f" {config.cache_dtype}"
        )
    if config.page_size < 16 or config.page_size & (config.page_size - 1):
        raise Unsupported(
            f"tiles need page_size to be a power of two from 16 on, got {config.page_size}"
        )
    if config.sinks:
        raise Unsupported("attends to latents without sinks only")
    value, rest = config.result_dim, config.head_dim - config.result_dim
    if value % (_PARTS * _COLUMNS) or value > _PARTS * _MOST_COLUMNS:
        raise Unsupported(f"value_dim must be 128, 256, 384 or 512, got {value}")
    if rest % _COLUMNS or not 0 < rest <= _COLUMNS:
        raise Unsupported(
            f"head_dim must be {_COLUMNS} more than value_dim ({value}), got {config.head_dim}"
        )


def blocks(config: AttentionConfig) -> Blocks:
    """See backend.Kernels."""
    heads = _heads(config)
    return Blocks(
        decode_tokens=ROWS // heads,
        decode_keys=_TILE_KEYS,
        prefill_tokens=ROWS // heads,
        item_blocks=-(-config.heads // heads),
        blocks_per_core=2,
    )


def _heads(config: AttentionConfig) -> int:
    """Return the number of heads of a thread block, including padding."""
    return min(ROWS, -(-config.heads // _HEADS) * _HEADS)


def decode(
    q: Float[Array, "tokens heads head_dim"],
    cache: Shaped[Array, "1 pages 1 page_size head_dim"],
    page_table: Int32[Array, "sequences pages"],
    items: Int32[Array, "items fields"],
    *,
    query_tokens: int,
    scale: float,
    config: AttentionConfig,
    target: Target,
) -> tuple[
    Float[Array, "items query_tokens heads result_dim"], Float[Array, "items query_tokens heads"]
]:
    """See backend.Kernels."""
    # All rows of an item's tile are read, including those after its last row.
    q = jnp.pad(_padded(q, config), ((0, query_tokens - 1), (0, 0), (0, 0)))
    shape = (items.shape[0], query_tokens, q.shape[1])
    kernel = _kernel(
        "paged_attention_decode_latents",
        items.shape[0],
        (
            jax.ShapeDtypeStruct((*shape, config.result_dim), jnp.float32),
            jax.ShapeDtypeStruct(shape, jnp.float32),
        ),
        query_tokens,
        scale,
        config,
        target,
    )
    parts, sums = kernel(q, cache, page_table, items)
    return parts[:, :, : config.heads], sums[:, :, : config.heads]


def prefill(
    q: Float[Array, "tokens heads head_dim"],
    cache: Shaped[Array, "1 pages 1 page_size head_dim"],
    page_table: Int32[Array, "sequences pages"],
    items: Int32[Array, "items fields"],
    *,
    scale: float,
    sinks: Float[Array, " heads"] | None,
    config: AttentionConfig,
    target: Target,
) -> Float[Array, "tokens heads result_dim"]:
    """See backend.Kernels."""
    del sinks  # refused by `check`
    q = _padded(q, config)
    kernel = _kernel(
        "paged_attention_prefill_latents",
        items.shape[0],
        (jax.ShapeDtypeStruct((*q.shape[:2], config.result_dim), q.dtype),),
        min(ROWS // _heads(config), q.shape[0]),
        scale,
        config,
        target,
    )
    (out,) = kernel(q, cache, page_table, items)
    return cast(jax.Array, out)[:, : config.heads]


def _padded(q: jax.Array, config: AttentionConfig) -> jax.Array:
    """Return the queries with zeros for the heads that fill up the last thread block."""
    return jnp.pad(q, ((0, 0), (0, -config.heads % _heads(config)), (0, 0)))


@dataclass(frozen=True, kw_only=True)
class _Params:
    """Parameters of the kernel, equal for all thread blocks.

    config: that of the heads of one block.
    """

    plan: Plan
    config: AttentionConfig
    scale: float
    is_simulated: bool


def _kernel(
    name: str,
    num_items: int,
    out_type: tuple[jax.ShapeDtypeStruct, ...],
    tokens: int,
    scale: float,
    config: AttentionConfig,
    target: Target,
) -> Callable[..., Any]:
    """Create the kernel, with one thread block per item and `_heads` heads."""
    heads = _heads(config)
    params = _Params(
        plan=Plan(
            warpgroups=_PARTS, tokens=tokens, keys=_TILE_KEYS, stages=_STAGES, is_split=False
        ),
        config=replace(config, heads=heads),
        scale=scale,
        is_simulated=target.is_simulated,
    )

    def body(*refs: Any, **scratch: Any) -> None:
        _run(params, refs, scratch)

    return cast(
        Callable[..., Any],
        plgpu.kernel(
            body,
            out_type=out_type,
            scratch_types=_scratch(params, out_type[0].dtype),
            grid=(num_items, -(-config.heads // heads)),
            grid_names=("item", "head_block"),
            num_threads=params.plan.num_threads,
            thread_name="warpgroup",
            kernel_name=name,
            # Rows are reduced within a warp, without scratch.
            compiler_params=plgpu.CompilerParams(approx_math=True, reduction_scratch_bytes=0),
            interpret=interpreter(target),
        ),
    )


def _scratch(params: _Params, result_dtype: Any) -> dict[str, Any]:
    """Describe shared memory and barriers, by name."""
    plan, config = params.plan, params.config
    dtype, width = jnp.dtype(config.dtype), config.result_dim // _PARTS

    def tile(*shape: int) -> Any:
        return plgpu.SMEM(shape, dtype, transforms=tiles.transforms(_SWIZZLE))

    # Each part of the values is a tile of its own, beside that of the rest of the keys.
    rest = config.head_dim - config.result_dim
    slots = [tile(plan.stages, _PARTS, plan.keys, width), tile(plan.stages, plan.keys, rest)]
    results = [plgpu.SMEM((_PARTS, ROWS, width), result_dtype), plgpu.SMEM((ROWS,), jnp.float32)]
    boxes = max(1, plan.keys // config.page_size)
    return {
        "queries": [tile(_PARTS, ROWS, width), tile(ROWS, rest)],
        # Results reuse the memory of the keys, once all were read. The simulator tracks a union as
        # one object, so it gets separate buffers.
        "ring": (slots, results) if params.is_simulated else plgpu.RefUnion(slots, results),
        "q_ready": plgpu.Barrier(num_arrivals=plan.tokens * (_PARTS + 1)),
        "ready": [plgpu.Barrier(num_arrivals=boxes * (_PARTS + 1), num_barriers=plan.stages)],
        "free": [plgpu.Barrier(num_arrivals=plan.warpgroups, num_barriers=plan.stages)],
        "turn": plgpu.Barrier(num_arrivals=plan.warpgroups),
    }


def _run(params: _Params, refs: Sequence[Any], scratch: dict[str, Any]) -> None:
    """Run one warpgroup. refs: operands and results. scratch: scratch references by name."""

    @pl.when(refs[3][lax.axis_index("item"), NUM_ROWS] > 0)
    def _work() -> None:
        # Each branch reads its item: values read before the branch would occupy registers in both.
        @pl.when(lax.axis_index("warpgroup") < _PARTS)
        def _compute() -> None:
            plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
            _Block(params, refs, scratch).compute()

        @pl.when(lax.axis_index("warpgroup") == _PARTS)
        def _fetch() -> None:
            plgpu.set_max_registers(FETCH_REGISTERS, action="decrease")
            block = _Block(params, refs, scratch)
            block.fetch_queries()
            block.ring.fetch_all()


class _Ring(Ring):
    """Ring buffer of latents: the slots are those of the values' parts, and of the rest."""

    def fetch(self, plane: int, tile: jax.Array | int, pages: Pages) -> None:
        """See Ring."""
        slot, rows = tile % self.plan.stages, min(self.plan.keys, self.config.page_size)
        for i, (page, offset) in enumerate(pages):
            source = self.cache.at[plane, page, self.kv_head, pl.ds(offset, rows)]
            values, rest = (each.at[slot] for each in self.slots)
            to = pl.ds(i * rows, rows)
            _copy_parts(source, values, rest, to, self.ready[plane].at[slot])

    def get(self, plane: int, tile: jax.Array) -> Any:
        """Wait for a tile, and return the references to its parts."""
        slot = lax.rem(tile, self.plan.stages)
        plgpu.barrier_wait(self.ready[plane].at[slot])
        return [each.at[slot] for each in self.slots]


def _copy_parts(source: Any, values: Any, rest: Any, rows: Any, ready: Any) -> None:
    """Start to copy [rows, head_dim] to some rows of `values`, [parts, rows, width], and `rest`."""
    parts, _, width = values.shape
    for part in range(parts):
        columns = source.at[:, pl.ds(part * width, width)]
        plgpu.copy_gmem_to_smem(columns, values.at[part, rows], ready)
    columns = source.at[:, pl.ds(parts * width, rest.shape[1])]
    plgpu.copy_gmem_to_smem(columns, rest.at[rows], ready)


class _Block:
    """Computation of one warpgroup for one item and the heads of its thread block."""

    def __init__(self, params: _Params, refs: Sequence[Any], scratch: dict[str, Any]) -> None:
        self.params, self.plan, self.config = params, params.plan, params.config
        self.q, cache, page_table, items, *self.results = refs
        self.index, self.head_block = lax.axis_index("item"), lax.axis_index("head_block")
        self.warpgroup = lax.axis_index("warpgroup")
        self.heads = pl.ds(self.head_block * self.config.heads, self.config.heads)
        self.item = item = tiles.Item.read(items, self.index)
        # A tile must not extend beyond the end of the array, so the last tile is moved back.
        self.start = jnp.minimum(item.first_row, self.q.shape[0] - self.plan.tokens)
        self.position = item.first_position + self.start - item.first_row

        self.queries, self.q_ready = scratch["queries"], scratch["q_ready"]
        self.turn = scratch["turn"]
        slots, (self.rows, self.row_sums) = scratch["ring"]
        self.ring = _Ring(
            plan=params.plan,
            config=params.config,
            item=item,
            kv_head=jnp.int32(0),
            cache=cache,
            page_table=page_table,
            slots=slots,
            ready=scratch["ready"],
            free=scratch["free"],
        )
        self.scores = tiles.Scores(scale=params.scale, config=params.config, layout=_TILE)

    def fetch_queries(self) -> None:
        """Start to fetch the rows of queries."""
        heads = self.config.heads
        for token in range(self.plan.tokens):
            source = self.q.at[self.start + token, self.heads]
            values, rest = self.queries
            _copy_parts(source, values, rest, pl.ds(token * heads, heads), self.q_ready)

    def compute(self) -> None:
        """Compute this warpgroup's part of the results of all rows."""
        plgpu.barrier_wait(self.q_ready)
        width = self.config.result_dim // _PARTS
        carry = (
            plgpu.layout_cast(jnp.full((ROWS,), UNSEEN, jnp.float32), _PER_ROW),
            plgpu.layout_cast(jnp.zeros((ROWS,), jnp.float32), _PER_ROW),
            plgpu.layout_cast(jnp.zeros((ROWS, width), jnp.float32), _TILE),
        )
        maximum, total, out = lax.fori_loop(0, self.ring.num_tiles, self.step, carry)
        total = jnp.where(total > 0, total, 1.0)
        self.store(out / spread(total, out.shape), maximum + jnp.log2(total))

    def step(self, tile: jax.Array, carry: _Softmax) -> _Softmax:
        """Attend to one tile of keys."""
        maximum, total, out = carry
        first_key = self.ring.first_key(tile)
        values, rest = self.ring.get(KEYS, tile)
        own = values.at[self.warpgroup]

        # Zero the values that were never written before either warpgroup multiplies them.
        @pl.when(first_key + self.plan.keys > self.item.kv_length)
        def _clear() -> None:
            copy_written(own, own, first_key, self.item.kv_length)
            self.meet()

        scores = self.multiply_keys(values, rest)
        scores = self.scores(scores, first_key, self.position, self.plan.tokens)
        factor = self.scores.factor
        new_maximum = jnp.maximum(maximum, scores.max(axis=1) * factor)
        decay = jnp.exp2(maximum - new_maximum)
        weights = jnp.exp2(scores * factor - spread(new_maximum, scores.shape))
        total = total * decay + weights.sum(axis=1)
        out *= spread(decay, out.shape)
        out = self.multiply_values(out, weights.astype(self.config.dtype), own)
        self.ring.release(KEYS, tile, [])
        return new_maximum, total, out

    def multiply_keys(self, values: Any, rest: Any) -> jax.Array:
        """Return queries @ keys.T, summed over the parts of the keys."""
        of_values, of_rest = self.queries
        pairs = [(of_values.at[part], values.at[part]) for part in range(_PARTS)]
        pairs.append((of_rest, rest))
        if self.params.is_simulated:
            return sum(
                (simulated_product(queries[...], keys[...].T) for queries, keys in pairs),
                start=jnp.zeros((ROWS, self.plan.keys), jnp.float32),
            )

        def multiply(scores: Any) -> jax.Array:
            for queries, keys in pairs:
                plgpu.wgmma(scores, queries, keys.transpose((1, 0)))
            product: jax.Array = scores[...]
            return product

        shape = (ROWS, self.plan.keys)
        scores: jax.Array = pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef(shape, jnp.float32))
        return scores

    def multiply_values(self, out: jax.Array, weights: jax.Array, values: Any) -> jax.Array:
        """Return out + weights @ values."""
        return add_product(out, weights, values, is_simulated=self.params.is_simulated)

    def meet(self) -> None:
        """Wait for the other warpgroup."""
        plgpu.barrier_arrive(self.turn)
        plgpu.barrier_wait(self.turn)

    def store(self, out: jax.Array, sums: jax.Array) -> None:
        """Write this warpgroup's columns: partial results of decode, or rows of a prompt."""
        result, *rest = self.results
        rows, width = self.rows.at[self.warpgroup], out.shape[1]
        plgpu.commit_smem()
        self.meet()  # The rows overwrite the ring buffer, which both have read.
        rows[...] = out.astype(rows.dtype)

        @pl.when(self.warpgroup == 0)
        def _sums() -> None:
            self.row_sums[...] = sums

        plgpu.commit_smem()
        first = self.item.first_row - self.start

        @pl.loop(0, jnp.minimum(self.item.num_rows, self.plan.tokens - first))
        def _store(query: jax.Array) -> None:
            place = (self.index, query) if rest else (self.item.first_row + query,)
            target = result.at[(*place, self.heads, pl.ds(self.warpgroup * width, width))]
            row = (first + query) * self.config.heads
            plgpu.copy_smem_to_gmem(rows.at[pl.ds(row, self.config.heads)], target)

        if rest:

            @pl.when(self.warpgroup == 0)
            def _store_sums() -> None:
                def sums_of(query: jax.Array) -> Any:
                    return rest[0].at[self.index, query]

                tiles.store_sums(
                    self.row_sums, self.config, self.item.num_rows, self.head_block, sums_of
                )

        plgpu.wait_smem_to_gmem(0)
