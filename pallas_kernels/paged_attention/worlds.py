"""Test inputs for backends: random numbers, shuffled pages, and NaN in unwritten slots."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.paged_attention.batch import CacheSpec, PagedBatch
from pallas_kernels.paged_attention.cases import Case
from pallas_kernels.paged_attention.spec import AttentionSpec

# Axes of the reference's cache, which is also the layout in a World.
AXES: tuple[str, ...] = ("planes", "pages", "kv_heads", "offsets", "head_dim")

# Standard deviation of queries. With 1, all keys have similar weights, and a missing key among
# hundreds is hard to detect; with 2, a few keys dominate.
QUERY_DEVIATION = 2.0

# Powers of two, so that only the conversion to the cache's dtype rounds, and its contents are
# bitwise equal on every backend. The smallest scale makes int8 clip.
SCALES = (1 / 64, 1 / 32, 1 / 16)
_LIMITS = {"float8_e4m3fn": 448.0, "int8": 127.0}

# Pages that no sequence owns.
SPARE_PAGES = 2

# Invalid page numbers.
_NO_PAGES = (-1, -(2**31), 2**31 - 1, 1 << 20)


@dataclass(frozen=True, kw_only=True)
class World:
    """All arguments of an `attend`, as numpy arrays; the cache has the reference's layout.

    Padding rows are NaN. So are cache slots without a token of a sequence, slots that this step
    will write, and all of page 0. An int8 cache has a number there that `attend` never writes.
    """

    case: Case
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray | None
    cache: np.ndarray
    batch: PagedBatch
    sinks: np.ndarray | None
    k_scale: np.ndarray | None
    v_scale: np.ndarray | None

    @property
    def scale(self) -> float:
        """Factor that scores are multiplied by."""
        return float(self.case.config.head_dim**-0.5)

    @property
    def spec(self) -> AttentionSpec:
        """Attention parameters of the layer, with arrays on the device."""
        config = self.case.config
        arrays = (self.sinks, self.k_scale, self.v_scale)
        sinks, k_scale, v_scale = (None if a is None else jnp.asarray(a) for a in arrays)
        return AttentionSpec(
            scale=self.scale,
            sliding_window=config.sliding_window,
            soft_cap=config.soft_cap,
            value_dim=config.value_dim,
            sinks=sinks,
            k_scale=k_scale,
            v_scale=v_scale,
        )


def draw(case: Case, seed: int) -> World:
    """Return a random world for a case."""
    rng = np.random.default_rng(seed)
    config = case.config
    batch, num_written = lay_out(case, seed)
    is_scaled = config.cache_dtype in _LIMITS
    k_scale, v_scale = (
        rng.choice(np.array(SCALES, np.float32), config.kv_heads) if is_scaled else None
        for _ in range(2)
    )
    v_scale = v_scale if config.value_dim is None else None
    shape = (len(num_written), config.kv_heads, config.page_size, config.head_dim)
    planes = [
        quantize(rng.standard_normal(shape, np.float32), scale, config.cache_dtype, axis=1)
        for scale in (k_scale, v_scale)[: config.num_planes]
    ]
    is_written = np.arange(config.page_size) < num_written[:, None]
    cache = np.where(is_written[:, None, :, None], np.stack(planes), poison(config.cache_dtype))

    def rows(heads: int, deviation: float) -> np.ndarray:
        drawn = deviation * rng.standard_normal(
            (case.num_tokens, heads, config.head_dim), np.float32
        )
        drawn[case.num_rows :] = np.nan
        return drawn.astype(jnp.dtype(config.dtype))

    return World(
        case=case,
        q=rows(config.heads, QUERY_DEVIATION),
        k=rows(config.kv_heads, 1.0),
        v=rows(config.kv_heads, 1.0) if config.value_dim is None else None,
        cache=cache,
        batch=batch,
        sinks=rng.standard_normal(config.heads, np.float32) if config.sinks else None,
        k_scale=k_scale,
        v_scale=v_scale,
    )


def lay_out(case: Case, seed: int) -> tuple[PagedBatch, np.ndarray]:
    """Assign random pages to every sequence; return the batch, and the tokens in each page.

    The latter, int32[pages], counts the tokens written by earlier steps. Padding that may have any
    value has values that cause errors if they are used.
    """
    rng = np.random.default_rng(seed)
    page_size = case.config.page_size
    owned = [case.pages_for(total) for _, total in case.sequences]
    num_pages = 1 + sum(owned) + SPARE_PAGES
    pages_of = np.split(1 + rng.permutation(num_pages - 1), np.cumsum(owned))
    num_written = np.zeros(num_pages, np.int32)
    # Unused entries may have any value: pages of other sequences, and invalid numbers.
    page_table = rng.integers(0, num_pages, (case.num_sequences, case.max_pages), np.int32)
    no_page = rng.choice(np.array(_NO_PAGES, np.int32), page_table.shape)
    page_table = np.where(rng.integers(0, 2, page_table.shape, bool), no_page, page_table)
    row_sequences = rng.integers(0, max(case.num_sequences, 1), case.num_tokens, np.int32)
    positions = rng.integers(0, case.max_pages * page_size, case.num_tokens, np.int32)
    starts = np.full(case.num_sequences + 1, case.num_rows, np.int32)
    lengths = np.zeros(case.num_sequences, np.int32)
    row = 0
    for s, (rows, total) in enumerate(case.sequences):
        page_table[s, : owned[s]] = pages_of[s]
        first_positions = np.arange(owned[s]) * page_size
        num_written[pages_of[s]] = np.clip(total - rows - first_positions, 0, page_size)
        row_sequences[row : row + rows] = s
        positions[row : row + rows] = np.arange(total - rows, total)
        starts[s], lengths[s] = row, total
        row += rows
    batch = PagedBatch(
        page_table=jnp.asarray(page_table),
        query_starts=jnp.asarray(starts),
        kv_lengths=jnp.asarray(lengths),
        row_sequences=jnp.asarray(row_sequences),
        positions=jnp.asarray(positions),
        max_query_length=case.max_query_length,
    )
    return batch, num_written


def quantize(x: np.ndarray, scale: np.ndarray | None, dtype: str, *, axis: int = -2) -> np.ndarray:
    """Return x / scale, converted to the cache's `dtype`; `axis` is the axis of the KV heads."""
    if scale is not None:
        x = x.astype(np.float32) / np.moveaxis(scale[:, *[None] * (x.ndim - 1)], 0, axis)
    if dtype in _LIMITS:
        x = np.clip(x.astype(np.float32), -_LIMITS[dtype], _LIMITS[dtype])
    return (np.rint(x) if dtype == "int8" else x).astype(jnp.dtype(dtype))


def poison(dtype: str) -> np.ndarray:
    """Return the value of unwritten slots: NaN, or for int8 one that quantizing never yields."""
    return np.array(-128 if dtype == "int8" else np.nan, jnp.dtype(dtype))


def pack[A: (np.ndarray, jax.Array)](cache: A, spec: CacheSpec) -> A:
    """Convert a cache from the reference's layout to that of `spec`, by its axis names.

    An axis `lanes` holds keys and values side by side. Padding of `lanes` and head_dim is zeros.
    """
    axes = AXES
    if "lanes" in spec.axes:
        axes = (*AXES[1:-1], "lanes")
        cache = _moved(cache, 0, -2).reshape(*cache.shape[1:-1], -1)
    packed = cache.transpose([axes.index(axis) for axis in spec.axes])
    padding = [(0, size - old) for size, old in zip(spec.shape, packed.shape, strict=True)]
    return np.pad(packed, padding) if isinstance(packed, np.ndarray) else jnp.pad(packed, padding)


def unpack[A: (np.ndarray, jax.Array)](
    cache: A, spec: CacheSpec, head_dim: int, *, num_planes: int = 2
) -> A:
    """Convert a cache from the layout of `spec` to the reference's layout."""
    if "lanes" in spec.axes:
        axes = (*AXES[1:-1], "lanes")
        cache = cache.transpose([spec.axes.index(axis) for axis in axes])[
            ..., : num_planes * head_dim
        ]
        return _moved(cache.reshape(*cache.shape[:-1], num_planes, head_dim), -2, 0)
    return cache.transpose([spec.axes.index(axis) for axis in AXES])[..., :head_dim]


def _moved[A: (np.ndarray, jax.Array)](x: A, source: int, destination: int) -> A:
    axes = list(range(x.ndim))
    axes.insert(destination % x.ndim, axes.pop(source))
    return x.transpose(axes)


def relative_error(found: np.ndarray | jax.Array, wanted: np.ndarray | jax.Array) -> float:
    """Return the largest ||found - wanted|| / ||wanted|| over rows and heads; NaN is infinite.

    The norm of a whole step would hide a single wrong row or head.
    """
    if found.size == 0:
        return 0.0
    xp = jnp if isinstance(found, jax.Array) else np
    difference = xp.linalg.norm(found.astype(wanted.dtype) - wanted, axis=-1)
    errors = difference / xp.linalg.norm(wanted, axis=-1)
    return float(xp.where(xp.isfinite(errors), errors, xp.inf).max())
