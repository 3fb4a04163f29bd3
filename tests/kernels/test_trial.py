"""The self-check at the start: what it must notice, and what it must not be troubled by."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.paged_attention import (
    BACKENDS,
    AttentionConfig,
    PagedBatch,
    WrongResult,
    reference,
    self_check,
)
from pallas_kernels.targets import CPU, Target, find_target

CONFIG = AttentionConfig(
    heads=4, kv_heads=2, head_dim=16, page_size=8, dtype="float32", cache_dtype="float32"
)


def check(monkeypatch: pytest.MonkeyPatch, config: AttentionConfig, attend: Any) -> float:
    backend = SimpleNamespace(**{**vars(reference), "attend": attend})
    monkeypatch.setitem(BACKENDS, "tried", backend)
    return self_check(config, backend="tried", target=CPU)


@pytest.mark.parametrize("cache_dtype", ["float32", "float8_e4m3fn", "int8"])
def test_another_order_of_additions_is_tolerated(
    monkeypatch: pytest.MonkeyPatch, cache_dtype: str
) -> None:
    def attend(q: jax.Array, *args: Any, **kwargs: Any) -> tuple[jax.Array, jax.Array]:
        out, cache = reference.attend(q, *args, **kwargs)
        return out * (1 + 3e-6), cache

    error = check(monkeypatch, replace(CONFIG, cache_dtype=cache_dtype), attend)
    assert 1e-6 < error < 1e-5


def test_one_key_too_many_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(*args: Any, config: AttentionConfig, target: Target) -> tuple[jax.Array, jax.Array]:
        assert config.sliding_window is not None
        wider = replace(config, sliding_window=config.sliding_window + 1)
        return reference.attend(*args, config=wider, target=target)

    with pytest.raises(WrongResult, match=r"tried backend .* wrong numbers on cpu"):
        check(monkeypatch, replace(CONFIG, sliding_window=512), attend)


def test_kernels_pass_past_a_window() -> None:
    config = replace(CONFIG, heads=2, head_dim=64, page_size=16, sliding_window=512)
    config = replace(config, dtype="bfloat16", cache_dtype="bfloat16")
    target = find_target("h200").simulated()
    assert self_check(config, backend="mosaic_gpu", target=target) < 1e-2


def test_a_sink_left_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(*args: Any, **kwargs: Any) -> tuple[jax.Array, jax.Array]:
        without = [*args[:-1], replace(args[-1], sinks=None)]
        return reference.attend(*without, **kwargs)

    with pytest.raises(WrongResult):
        check(monkeypatch, replace(CONFIG, sinks=True), attend)


def test_pages_mixed_up_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        cache: jax.Array,
        batch: PagedBatch,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[jax.Array, jax.Array]:
        table = jnp.sort(batch.page_table, axis=1)
        if q.shape[0] == batch.kv_lengths.shape[0]:
            batch = replace(batch, page_table=table)
        return reference.attend(q, k, v, cache, batch, *args, **kwargs)

    with pytest.raises(WrongResult):
        check(monkeypatch, CONFIG, attend)


def test_nan_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(q: jax.Array, *args: Any, **kwargs: Any) -> tuple[jax.Array, jax.Array]:
        out, cache = reference.attend(q, *args, **kwargs)
        return out.at[0, 0, 0].set(jnp.nan), cache

    with pytest.raises(WrongResult, match="off by inf"):
        check(monkeypatch, CONFIG, attend)
