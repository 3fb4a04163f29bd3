"""Interface of paged attention, and the selection of a backend."""

from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels import dispatch
from pallas_kernels.dispatch import Choice, Unsupported
from pallas_kernels.paged_attention import reference
from pallas_kernels.paged_attention.batch import AttentionConfig, CacheSpec, PagedBatch
from pallas_kernels.paged_attention.spec import AttentionSpec
from pallas_kernels.rotary import rotate
from pallas_kernels.targets import Target, current_target

OP = "paged_attention"


class Backend(Protocol):
    """A backend of paged attention: a module with these functions."""

    def check(self, config: AttentionConfig, target: Target) -> None:
        """Raise Unsupported, with the reason, if `target` or `config` is not supported."""

    def cache_spec(self, config: AttentionConfig, *, num_pages: int) -> CacheSpec:
        """Describe the cache of one layer; here `config` has the heads of all devices."""

    def empty_cache(self, spec: jax.ShapeDtypeStruct) -> jax.Array:
        """Return an uninitialized cache of one layer, or one device's part of it.

        May be called before `check`.
        """

    def workspace_bytes(
        self,
        config: AttentionConfig,
        target: Target,
        *,
        num_tokens: int,
        num_sequences: int,
        max_query_length: int,
    ) -> int:
        """Estimate the temporary memory, in bytes, of one `attend` on one device."""

    def attend(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array | None,
        cache: jax.Array,
        batch: PagedBatch,
        spec: AttentionSpec,
        *,
        config: AttentionConfig,
        target: Target,
    ) -> tuple[jax.Array, jax.Array]:
        """See api.attend.

        q and k are already rotated; k and v are already scaled and have the cache's dtype. v is
        None if `config` has a value_dim. From
        `spec`, a backend reads only `scale` and `sinks` (float32); the rest is in `config`. Shapes
        have been checked. If the batch is traced, its numbers have not: the backend must not access
        memory outside of the arrays, whatever they are (see `PagedBatch.confined`).
        """


@dataclass(frozen=True)
class _OnDemand:
    """A backend whose module is imported only for targets of its platform.

    Importing the kernel languages takes seconds, which machines without the device can avoid.
    """

    module: str
    platform: str
    device: str

    def check(self, config: AttentionConfig, target: Target) -> None:
        """See Backend."""
        if target.platform != self.platform:
            raise Unsupported(f"needs {self.device}, got {target.name}")
        self._imported().check(config, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._imported(), name)

    def _imported(self) -> Any:
        return import_module(f"pallas_kernels.paged_attention.{self.module}")


# In order of preference.
BACKENDS: dict[str, Backend] = {
    "mosaic_gpu": cast(Backend, _OnDemand("mosaic_gpu.backend", "cuda", "an NVIDIA GPU")),
    "tpu": cast(Backend, _OnDemand("tpu.backend", "tpu", "a TPU")),
    "cpu": cast(Backend, _OnDemand("cpu.backend", "cpu", "a CPU")),
    "reference": reference,
}

# Dtypes of a cache, and the largest magnitude of those that need a scale.
CACHE_DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "int8")
_LIMITS = {"float8_e4m3fn": 448.0, "int8": 127.0}


def choose(
    *configs: AttentionConfig, target: Target | None = None, backend: str | None = None
) -> Choice:
    """Return the backend that computes all of these cases on `target` (default: JAX's device).

    backend: name of the backend to use. Raises ValueError for an unknown name, and Unsupported,
    with the reasons, if no backend (or not `backend`) supports all cases.
    """
    target = current_target() if target is None else target
    checks = {name: partial(_check, BACKENDS[name], configs, target) for name in BACKENDS}
    return dispatch.choose(OP, checks, backend)


def _check(backend: Backend, configs: tuple[AttentionConfig, ...], target: Target) -> None:
    for config in configs:
        if config.cache_dtype not in CACHE_DTYPES:
            raise Unsupported(f"a cache holds {', '.join(CACHE_DTYPES)}, not {config.cache_dtype}")
        backend.check(config, target)


def cache_spec(
    config: AttentionConfig, *, num_pages: int, backend: str, devices: int = 1
) -> CacheSpec:
    """Describe the cache of one layer with `num_pages` pages, including page 0, for `backend`.

    The shape is global, over all `devices`; `config` is that of one device. The axis names tell
    how the cache is sharded. The second-to-last axis is the offset in a page.
    """
    heads, kv_heads = devices * config.heads, devices * config.kv_heads
    whole = replace(config, heads=heads, kv_heads=kv_heads)
    if num_pages < 1:
        raise ValueError(f"num_pages must be at least 1, as page 0 takes padding, got {num_pages}")
    return _named(backend).cache_spec(whole, num_pages=num_pages)


def empty_cache(spec: CacheSpec | jax.ShapeDtypeStruct, *, backend: str) -> jax.Array:
    """Return an uninitialized cache, or one device's part of it.

    spec: result of `cache_spec` for the same backend, or a ShapeDtypeStruct like it.
    """
    return _named(backend).empty_cache(jax.ShapeDtypeStruct(spec.shape, spec.dtype))


def _named(backend: str) -> Backend:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    return BACKENDS[backend]


def workspace_bytes(
    config: AttentionConfig,
    target: Target,
    *,
    num_tokens: int,
    num_sequences: int,
    max_query_length: int,
    backend: str,
) -> int:
    """Estimate the temporary memory, in bytes, of one `attend` with these sizes on one device."""
    return BACKENDS[backend].workspace_bytes(
        config,
        target,
        num_tokens=num_tokens,
        num_sequences=num_sequences,
        max_query_length=max_query_length,
    )


def attend(
    q: Float[Array, "tokens heads head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"] | None,
    cache: jax.Array,
    batch: PagedBatch,
    spec: AttentionSpec,
    *,
    backend: str | None = None,
    target: Target | None = None,
) -> tuple[Float[Array, "tokens heads result_dim"], jax.Array]:
    """Write this step's keys and values into the cache, then attend causally over the pages.

    A query attends to the tokens of its own sequence up to its own position, as `spec` says. Query
    head h reads key/value head h // (heads // kv_heads). v is None if `spec` has a value_dim.

    Returns the results and the updated `cache`, which must have the layout of `cache_spec` for the
    same backend and should be donated. The results of padding rows are zeros, and padding rows
    write to page 0 only. Slots of a page beyond a sequence's length, even with NaN, never affect a
    result.

    Raises ValueError, naming the argument, for shapes that do not match and, outside of jit, for
    invalid numbers in the batch. Under jit, invalid numbers never cause an access outside of the
    arrays: pages that the cache does not have count as page 0, and invalid query ranges and lengths
    fail on a CPU and turn all rows into padding elsewhere.

    Raises Unsupported, with the reasons, if no backend (or not `backend`) supports the case on
    `target` (default: JAX's device).
    """
    _check_shapes(q, k, v, spec)
    config = AttentionConfig(
        heads=q.shape[1],
        kv_heads=k.shape[1],
        head_dim=q.shape[2],
        page_size=cache.shape[-2],
        dtype=q.dtype.name,
        cache_dtype=cache.dtype.name,
        sliding_window=spec.sliding_window,
        soft_cap=spec.soft_cap,
        sinks=spec.sinks is not None,
        value_dim=spec.value_dim,
    )
    target = current_target() if target is None else target
    backend = choose(config, target=target, backend=backend).backend
    batch = batch.checked(
        num_tokens=q.shape[0],
        num_pages=_num_pages(cache, config, backend),
        page_size=config.page_size,
    )
    if spec.rope is not None:
        q, k = rotate(q, spec.rope), rotate(k, spec.rope)
    if spec.k_scale is not None:
        q = _times(q, jnp.repeat(spec.k_scale, config.group))
    sinks = None if spec.sinks is None else spec.sinks.astype(jnp.float32)
    out, cache = BACKENDS[backend].attend(
        q,
        _stored(k, spec.k_scale, config.cache_dtype),
        None if v is None else _stored(v, spec.v_scale, config.cache_dtype),
        cache,
        batch,
        replace(spec, sinks=sinks),
        config=config,
        target=target,
    )
    v_scale = spec.k_scale if v is None else spec.v_scale
    if v_scale is not None:
        out = _times(out, jnp.repeat(v_scale, config.group))
    return out, cache


def _check_shapes(q: jax.Array, k: jax.Array, v: jax.Array | None, spec: AttentionSpec) -> None:
    """Raise ValueError if the shapes of `attend`'s arguments do not match."""
    if q.ndim != 3 or k.ndim != 3:
        raise ValueError(
            f"q and k must be [tokens, heads, head_dim], got shapes {q.shape} and {k.shape}"
        )
    if (v is None) != (spec.value_dim is not None):
        raise ValueError(f"v must be {'given' if v is None else 'None'} for {spec.value_dim=}")
    if v is None and spec.v_scale is not None:
        raise ValueError("v_scale must be None for values within the keys, which have k_scale")
    (num_tokens, heads, head_dim), kv_heads = q.shape, k.shape[1]
    of_kv_heads = (num_tokens, kv_heads, head_dim)
    wanted = {
        "k": of_kv_heads,
        "v": of_kv_heads,
        "sinks": (heads,),
        "k_scale": (kv_heads,),
        "v_scale": (kv_heads,),
    }
    given = {"k": k, "v": v, "sinks": spec.sinks, "k_scale": spec.k_scale, "v_scale": spec.v_scale}
    for name, array in given.items():
        if array is not None and array.shape != wanted[name]:
            raise ValueError(f"{name} must have shape {wanted[name]}, got {array.shape}")
    if spec.rope is not None and any(
        part.shape != (num_tokens, head_dim // 2) for part in spec.rope
    ):
        shapes = " and ".join(str(part.shape) for part in spec.rope)
        raise ValueError(f"rope must have shape {(num_tokens, head_dim // 2)}, got {shapes}")


def _num_pages(cache: jax.Array, config: AttentionConfig, backend: str) -> int:
    """Return a cache's number of pages. Raises ValueError unless it has the layout of `backend`."""
    spec = cache_spec(config, num_pages=1, backend=backend)
    pages = spec.axes.index("pages")
    shape = list(spec.shape)
    if cache.ndim == len(shape):
        shape[pages] = cache.shape[pages]
    if cache.shape != tuple(shape) or cache.shape[pages] < 1:
        wanted = ", ".join(
            word if word == "pages" else f"{word} {size}"
            for word, size in zip(spec.axes, spec.shape, strict=True)
        )
        raise ValueError(f"cache of the {backend} backend must be [{wanted}], got {cache.shape}")
    return shape[pages]


def _stored(x: jax.Array, scale: jax.Array | None, dtype: str) -> jax.Array:
    """Return keys or values, scaled and converted to the cache's dtype."""
    if scale is not None:
        x = x.astype(jnp.float32) / scale[:, None]
    if dtype in _LIMITS:
        x = jnp.clip(x, -_LIMITS[dtype], _LIMITS[dtype])
    return (jnp.round(x) if dtype == "int8" else x).astype(dtype)


def _times(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiply [tokens, heads, head_dim] by one factor per head, in float32."""
    return (x.astype(jnp.float32) * factor[:, None]).astype(x.dtype)
