"""The kernel benchmark notices wrong numbers, tells refusals, and counts the least work right."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from benchmarks.kernels import Result, least_work, measure, plan_calls, rehearsed
from pallas_kernels import Unsupported
from pallas_kernels.paged_attention import BACKENDS, reference
from pallas_kernels.paged_attention.cases import BENCHMARKS, LAYERS, Case, decode, shrunk
from pallas_kernels.targets import CPU

CASE = shrunk(BENCHMARKS["decode/gpt-oss-20b/64x4096"])


def result_of(monkeypatch: pytest.MonkeyPatch, name: str, case: Case, **changes: Any) -> Result:
    """Measure the reference with some functions replaced; jit remembers what `name` was."""
    monkeypatch.setitem(BACKENDS, name, SimpleNamespace(**{**vars(reference), **changes}))
    (result,) = measure("case", case, [name], target=CPU, seed=5, is_quick=True)
    return result


def test_right_kernel_has_an_error_and_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(CASE, config=replace(CASE.config, cache_dtype="int8"))
    result = result_of(monkeypatch, "right", case)
    assert result.note == ""
    assert result.seconds is not None
    assert result.error is not None
    assert 0 < result.error < 0.01


def test_row_that_is_not_written_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(q: jax.Array, *args: Any, **settings: Any) -> tuple[jax.Array, jax.Array]:
        out, cache = reference.attend(q, *args, **settings)
        return out.at[1, 0, 0].set(float("nan")), cache

    result = result_of(monkeypatch, "leaky", CASE, attend=attend)
    assert (result.error, result.note) == (float("inf"), "WRONG")


def test_refusal_is_told_in_the_backends_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(*args: Any) -> None:
        raise Unsupported("too small")

    result = result_of(monkeypatch, "refusing", CASE, check=check)
    assert (result.seconds, result.note) == (None, "too small")


def test_rehearsal_has_a_case_of_each_layer_and_kind_of_step() -> None:
    cases = rehearsed(BENCHMARKS)
    assert len(cases) < len(BENCHMARKS)
    assert all(case.config.kv_heads == 1 for case in cases.values())
    kinds = {(shrunk(case).config, case.is_decode) for case in BENCHMARKS.values()}
    assert {(case.config, case.is_decode) for case in cases.values()} == kinds
    assert "prefill/llama-3.1-8b/2048of32768" in cases


def test_least_work_of_a_decode_is_its_keys_values_queries_and_results() -> None:
    case = decode(LAYERS["llama-3.1-8b"], (1000, 24))
    kv_row, q_row = 2 * 8 * 128 * 2, 32 * 128 * 2
    assert least_work(case) == (1024 * kv_row + 2 * kv_row + 2 * 2 * q_row, 4 * 32 * 128 * 1024)


def test_calls_turn_about_over_more_bytes_than_caches_hold() -> None:
    case = BENCHMARKS["decode/llama-3.1-8b/1x4096"]
    calls, sets = plan_calls(case, is_quick=False)
    assert calls >= sets
    assert sets * least_work(case)[0] > 500e6
