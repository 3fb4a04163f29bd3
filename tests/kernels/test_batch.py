"""Batches from plain lists, and what batches that cannot be right come to."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import paged_attention
from pallas_kernels.paged_attention import AttentionConfig, AttentionSpec, PagedBatch, make_batch
from pallas_kernels.paged_attention.cases import TESTS
from pallas_kernels.paged_attention.worlds import lay_out

DOCS = Path(__file__).resolve().parents[2] / "docs/kernels.md"

SPEC = AttentionSpec(scale=0.25)
CONFIG = AttentionConfig(
    heads=4, kv_heads=2, head_dim=16, page_size=8, dtype="float32", cache_dtype="float32"
)
NUM_PAGES, NUM_TOKENS = 9, 8
# Two sequences and padding, of both rows and sequences.
BATCH = make_batch(
    query_lengths=[3, 1],
    kv_lengths=[12, 5],
    page_tables=[[3, 1], [7]],
    page_size=CONFIG.page_size,
    num_tokens=NUM_TOKENS,
    num_sequences=3,
)
BACKENDS = ("reference", "cpu")


def test_the_example_in_the_docs_runs_in_a_new_process() -> None:
    _, _, rest = DOCS.read_text("utf-8").partition("<!-- example -->\n```python\n")
    program, _, _ = rest.partition("```\n")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "(128, 8, 64) (2, 8, 64)\n", done.stderr


@pytest.mark.parametrize("name", ["mixed", "decode", "decode_in_a_window", "mixed_of_padding_only"])
def test_lists_become_the_batch_that_they_describe(name: str) -> None:
    case = TESTS[name]
    wanted, _ = lay_out(case, seed=0)
    needed = [case.pages_for(total) for _, total in case.sequences]
    found = make_batch(
        query_lengths=[rows for rows, _ in case.sequences],
        kv_lengths=[total for _, total in case.sequences],
        page_tables=np.asarray(wanted.page_table).tolist()[: len(needed)],
        page_size=case.config.page_size,
        num_tokens=case.num_tokens,
        num_sequences=case.num_sequences,
        table_width=case.max_pages,
    )
    assert found.max_query_length == wanted.max_query_length
    for field in ("query_starts", "kv_lengths"):
        np.testing.assert_array_equal(getattr(found, field), getattr(wanted, field))
    for field in ("row_sequences", "positions"):
        live = slice(case.num_rows)
        np.testing.assert_array_equal(getattr(found, field)[live], getattr(wanted, field)[live])
    for s, count in enumerate(needed):
        np.testing.assert_array_equal(found.page_table[s, :count], wanted.page_table[s, :count])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"query_lengths": [3]}, "query_lengths must have 2 entries, as kv_lengths, got 1"),
        ({"page_tables": []}, "page_tables must have 2 entries, as kv_lengths, got 0"),
        ({"query_lengths": [3, 6]}, r"query_lengths\[1\] must be in \[0, 5\], got 6"),
        ({"query_lengths": [-1, 1]}, r"query_lengths\[0\] must be in \[0, 12\], got -1"),
        ({"page_tables": [[3], [7]]}, r"page_tables\[0\] must have 2 pages for 12 tokens, got 1"),
        ({"page_tables": [[3, 0], [7]]}, r"page_tables\[0\] must hold pages from 1 on, got 0"),
        ({"num_tokens": 3}, "num_tokens must be at least 4, got 3"),
        ({"num_sequences": 1}, "num_sequences must be at least 2, got 1"),
        ({"table_width": 1}, "table_width must be at least 2, got 1"),
    ],
)
def test_lists_that_do_not_fit_are_refused(changes: dict[str, Any], reason: str) -> None:
    lists: dict[str, Any] = {
        "query_lengths": [3, 1],
        "kv_lengths": [12, 5],
        "page_tables": [[3, 1], [7]],
        "page_size": 8,
    }
    with pytest.raises(ValueError, match=reason):
        make_batch(**lists | changes)


def changed(changes: dict[str, Sequence[Any]]) -> PagedBatch:
    arrays: dict[str, Any] = {name: jnp.asarray(a, jnp.int32) for name, a in changes.items()}
    return replace(BATCH, **arrays)


def attend(batch: PagedBatch, backend: str, *, is_jitted: bool, seed: int = 0) -> np.ndarray:
    spec = paged_attention.cache_spec(CONFIG, num_pages=NUM_PAGES, backend=backend)
    rng = np.random.default_rng(seed)
    q, k, v = (
        jnp.asarray(rng.normal(size=(NUM_TOKENS, heads, CONFIG.head_dim)), jnp.float32)
        for heads in (CONFIG.heads, CONFIG.kv_heads, CONFIG.kv_heads)
    )

    def run(cache: jax.Array, batch: PagedBatch) -> jax.Array:
        return paged_attention.attend(q, k, v, cache, batch, SPEC, backend=backend)[0]

    cache = jnp.zeros(spec.shape, spec.dtype)
    return np.asarray((jax.jit(run) if is_jitted else run)(cache, batch))


HUGE = 2**31 - 1
WRONG: list[tuple[dict[str, Sequence[Any]], str]] = [
    ({"page_table": [[3, 9], [7, 0], [0, 0]]}, r"page_table\[0\] must hold .* \[0, 9\), got 9"),
    ({"page_table": [[3, HUGE], [7, 0], [0, 0]]}, rf"page_table\[0\] must .* got {HUGE}"),
    ({"page_table": [[-1, 1], [7, 0], [0, 0]]}, r"page_table\[0\] must .* got -1"),
    ({"kv_lengths": [17, 5, 0]}, r"kv_lengths\[0\] must be in \[3, 16\], .* got 17"),
    ({"kv_lengths": [HUGE, 5, 0]}, rf"kv_lengths\[0\] must be in \[3, 16\], .* got {HUGE}"),
    ({"kv_lengths": [2, 5, 0]}, r"kv_lengths\[0\] must be in \[3, 16\], .* got 2"),
    ({"kv_lengths": [-HUGE, 5, 0]}, r"kv_lengths\[0\] must be in"),
    ({"query_starts": [0, 3, 4, HUGE]}, "query_starts must rise from 0 to at most the 8 rows"),
    ({"query_starts": [0, 3, 2, 4]}, "query_starts must rise"),
    ({"query_starts": [-HUGE, 3, 4, 4]}, "query_starts must rise"),
    ({"query_starts": [0, HUGE, -HUGE, 4]}, "query_starts must rise"),
    ({"positions": [9, HUGE, 11, 4, 0, 0, 0, 0]}, rf"positions\[1\] must be 10, got {HUGE}"),
    ({"positions": [9, -HUGE, 11, 4, 0, 0, 0, 0]}, r"positions\[1\] must be 10, got"),
    ({"row_sequences": [0, HUGE, 0, 1, 0, 0, 0, 0]}, r"row_sequences\[1\] must be 0, got"),
    ({"row_sequences": [0, -9, 0, 1, 0, 0, 0, 0]}, r"row_sequences\[1\] must be 0, got -9"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("changes", "reason"), WRONG)
def test_numbers_that_no_step_has_are_refused_where_they_are_known(
    changes: dict[str, Sequence[Any]], reason: str, backend: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        attend(changed(changes), backend, is_jitted=False)


IS_CLAMPED = {"page_table", "positions", "row_sequences"}
CLAMPED = [changes for changes, _ in WRONG if changes.keys() <= IS_CLAMPED]
OF_THE_STEP = [changes for changes, _ in WRONG if not changes.keys() <= IS_CLAMPED]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("changes", CLAMPED)
def test_wrong_pages_and_rows_harm_no_other_sequence_under_jit(
    changes: dict[str, Sequence[Any]], backend: str
) -> None:
    out = attend(changed(changes), backend, is_jitted=True)
    assert np.isfinite(out).all()
    wanted = attend(BATCH, backend, is_jitted=True)
    np.testing.assert_allclose(out[3], wanted[3], rtol=1e-5)


@pytest.mark.parametrize("changes", OF_THE_STEP)
def test_wrong_ranges_and_lengths_fail_on_a_cpu_under_jit(
    changes: dict[str, Sequence[Any]],
) -> None:
    name = next(iter(changes))
    with pytest.raises(jax.errors.JaxRuntimeError, match=rf"paged attention: {name}\[\d\] must be"):
        attend(changed(changes), "cpu", is_jitted=True)


@pytest.mark.parametrize("changes", OF_THE_STEP)
def test_wrong_ranges_and_lengths_make_all_rows_padding_elsewhere(
    changes: dict[str, Sequence[Any]],
) -> None:
    out = attend(changed(changes), "reference", is_jitted=True)
    np.testing.assert_array_equal(out, 0)


def test_one_row_of_each_sequence_is_promised_only_where_it_is_so() -> None:
    with pytest.raises(ValueError, match="max_query_length must be at least the 3 rows"):
        attend(replace(BATCH, max_query_length=2), "cpu", is_jitted=False)
    with pytest.raises(ValueError, match="needs a row per sequence, got 8 rows and 3 sequences"):
        attend(replace(BATCH, max_query_length=1), "cpu", is_jitted=True)


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        ("kv_lengths", np.zeros(4, np.int32), r"page_table must have shape \(4, 2\)"),
        ("query_starts", np.zeros(3, np.int32), r"query_starts must have shape \(4,\)"),
        ("positions", np.zeros(7, np.int32), r"positions must have shape \(8,\), got \(7,\)"),
        ("page_table", np.zeros((3, 0), np.int32), "page_table must have a row and a column"),
        ("page_table", np.zeros((3, 2), np.float32), "page_table must hold integers, got float32"),
    ],
)
def test_arrays_of_wrong_shapes_are_refused_under_jit_too(
    name: str, array: np.ndarray, reason: str
) -> None:
    arrays: dict[str, Any] = {name: jnp.asarray(array)}
    with pytest.raises(ValueError, match=reason):
        attend(replace(BATCH, **arrays), "cpu", is_jitted=True)


def test_arguments_that_do_not_fit_each_other_are_named() -> None:
    q, k = jnp.zeros((8, 4, 16)), jnp.zeros((8, 2, 16))
    spec = paged_attention.cache_spec(CONFIG, num_pages=NUM_PAGES, backend="cpu")
    cache = paged_attention.empty_cache(spec, backend="cpu")

    def run(**changes: Any) -> None:
        arguments: dict[str, Any] = {"q": q, "k": k, "v": k, "cache": cache, "spec": SPEC}
        paged_attention.attend(**arguments | changes, batch=BATCH, backend="cpu")

    run()
    with pytest.raises(ValueError, match=r"v must have shape \(8, 2, 16\), got \(7, 2, 16\)"):
        run(v=k[:7])
    with pytest.raises(ValueError, match=r"sinks must have shape \(4,\), got \(2,\)"):
        run(spec=replace(SPEC, sinks=jnp.zeros(2)))
    with pytest.raises(ValueError, match=r"rope must have shape \(8, 8\), got \(8, 16\) and"):
        run(spec=replace(SPEC, rope=(jnp.zeros((8, 16)), jnp.zeros((8, 16)))))
    with pytest.raises(ValueError, match=r"cache of the cpu backend must be \[pages, kv_heads 2, "):
        run(cache=jnp.zeros((2, NUM_PAGES, 2, 8, 16)))
    with pytest.raises(ValueError, match="scale must be positive and finite, got 0"):
        replace(SPEC, scale=0.0)
    with pytest.raises(ValueError, match="sliding_window must be at least 1, got 0"):
        replace(SPEC, sliding_window=0)
    with pytest.raises(ValueError, match="soft_cap must be positive and finite, got -1"):
        replace(SPEC, soft_cap=-1.0)
    with pytest.raises(ValueError, match=r"backend must be one of .*, got 'cuda'"):
        paged_attention.empty_cache(spec, backend="cuda")
    with pytest.raises(ValueError, match="num_pages must be at least 1"):
        paged_attention.cache_spec(CONFIG, num_pages=0, backend="cpu")
