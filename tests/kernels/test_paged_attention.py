"""Every backend of paged attention, on every target it is for, against float64 numpy."""

import os
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import Unsupported, paged_attention, simulation
from pallas_kernels.paged_attention import AttentionConfig
from pallas_kernels.paged_attention.cases import LAYERS, TESTS, Case, decode, ragged
from pallas_kernels.paged_attention.cpu import backend as cpu_backend
from pallas_kernels.paged_attention.worlds import World, draw, pack, relative_error, unpack
from pallas_kernels.targets import CPU, Target, find_target, target_of
from tests.kernels.conftest import Recompile
from tests.kernels.oracle import attended, written

# See worlds.relative_error: three times what rounding makes of it in the reference.
TOLERANCE = {"float32": 5e-6, "float16": 2e-3, "bfloat16": 1.2e-2}

NO_LATENTS = {name: "beside the keys, not within them" for name in TESTS if "latents" in name}
NOT_NARROW = NO_LATENTS | {
    "decode_of_float32": "not float32",
    "mixed_of_float32": "not float32",
    "decode_from_float8": "not of float8_e4m3fn",
    "mixed_from_float8": "not of float8_e4m3fn",
    "decode_from_int8": "not of int8",
    "mixed_from_int8": "not of int8",
}

# Where each backend is tested, and what it refuses there, by words of the reason: it must compute
# every other case.
REFUSED: dict[tuple[str, str], dict[str, str]] = {
    ("reference", "cpu"): {},
    ("mosaic_gpu", "h200"): {
        "decode_of_float32": "not float32",
        "mixed_of_float32": "not float32",
        "mixed_of_float8_latents": "not of float8_e4m3fn",
    },
    ("mosaic_gpu", "a100"): NOT_NARROW,
    ("mosaic_gpu", "b200"): NOT_NARROW,
    ("tpu", "v5e"): {"mixed_of_float16": "float16"},
    ("cpu", "cpu"): {},
}

# Simulations take seconds for a case. These meet everything that the others meet one by one; with
# PALLAS_KERNELS_TESTS=all, and on the device itself (JAX_PLATFORMS=cuda), a backend computes all.
SIMULATED = (
    "decode_of_unequal_lengths",
    "decode_with_sinks_in_a_window",
    "decode_from_float8",
    "prefill_of_many_rows",
    "mixed_with_sinks_in_a_window",
    "mixed_under_a_soft_cap_in_a_window",
    "mixed_from_int8",
    "mixed_of_few_rows",
    "decode_of_latents",
    "mixed_of_float8_latents",
    *(name for name in TESTS if "past_the_window" in name),
)


def is_simulated(place: str) -> bool:
    return place != "cpu" and os.environ.get("JAX_PLATFORMS") == "cpu"


def cases_at(place: str) -> tuple[str, ...]:
    is_brief = is_simulated(place) and os.environ.get("PALLAS_KERNELS_TESTS") != "all"
    return SIMULATED if is_brief else tuple(TESTS)


def target_at(place: str) -> Target:
    """Return the target of that name, as it is or as a CPU plays it; skip where neither can be."""
    here = target_of(jax.devices()[0])
    if here.name == place:
        return here
    if here.platform != "cpu":
        pytest.skip(f"tested on {place} or on a CPU, not on {here.name}")
    return find_target(place).simulated()


RUNS = [
    pytest.param(name, backend, place, id=f"{backend}-{place}-{name}")
    for (backend, place), refused in REFUSED.items()
    for name in cases_at(place)
    if name not in refused
]
PLACES = [pytest.param(*place, id="-".join(place)) for place in REFUSED]
RACES = [
    pytest.param(name, backend, place, id=f"{backend}-{place}-{name}")
    for backend, place in REFUSED
    for name in ("mixed_with_sinks_in_a_window",)  # which has rows of all kinds
    if is_simulated(place)
]


@jax.jit(
    static_argnames=("backend", "target", "detect_races"),
    donate_argnames=("kv", "garbage"),
    keep_unused=True,
)
def attend(
    arrays: dict[str, Any],
    kv: jax.Array,
    garbage: jax.Array,
    *,
    backend: str,
    target: Target,
    detect_races: bool,
) -> tuple[jax.Array, jax.Array]:
    """Attend, and offer XLA a donated array of NaN to put the result in."""
    del garbage
    token = simulation.detect_races.set(detect_races)
    try:
        return paged_attention.attend(
            **arrays,
            cache=kv,
            backend=backend,
            target=target,
        )
    finally:
        simulation.detect_races.reset(token)


def run(
    world: World, backend: str, place: str, *, detect_races: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return the results in float64, and the cache in the reference's layout."""
    config = world.case.config
    spec = paged_attention.cache_spec(config, num_pages=world.cache.shape[1], backend=backend)
    arrays: dict[str, Any] = {"q": world.q, "k": world.k, "v": world.v, "batch": world.batch}
    arrays["spec"] = world.spec
    out, kv = attend(
        jax.tree.map(jnp.asarray, arrays),
        jnp.asarray(pack(world.cache, spec)),
        jnp.full((*world.q.shape[:-1], config.result_dim), jnp.nan, world.q.dtype),
        backend=backend,
        target=target_at(place),
        detect_races=detect_races,
    )
    kv = unpack(np.asarray(kv), spec, config.head_dim, num_planes=config.num_planes)
    return np.asarray(out, np.float64), kv


@cache
def outcome(name: str, backend: str, place: str) -> tuple[World, np.ndarray, np.ndarray]:
    """Compute a case once for all tests that look at it."""
    world = draw(TESTS[name], seed=1)
    return world, *run(world, backend, place)


def error_of(world: World, out: np.ndarray) -> float:
    live = slice(world.case.num_rows)
    return relative_error(out[live], attended(world)[live])


@pytest.mark.parametrize(("name", "backend", "place"), RUNS)
def test_computes_what_is_defined_whatever_unwritten_slots_hold(
    name: str, backend: str, place: str
) -> None:
    world, out, _ = outcome(name, backend, place)
    assert error_of(world, out) < TOLERANCE[world.case.config.dtype]


@pytest.mark.parametrize(("name", "backend", "place"), RUNS)
def test_rows_of_padding_are_zeros(name: str, backend: str, place: str) -> None:
    world, out, _ = outcome(name, backend, place)
    np.testing.assert_array_equal(out[world.case.num_rows :], 0)


@pytest.mark.parametrize(("name", "backend", "place"), RUNS)
def test_changes_the_slots_of_new_tokens_and_page_0_only(
    name: str, backend: str, place: str
) -> None:
    world, _, kv = outcome(name, backend, place)
    wanted = written(world)
    np.testing.assert_array_equal(kv[:, 1:].astype(float), wanted[:, 1:].astype(float))


@pytest.mark.parametrize(
    "name", ["decode_of_unequal_lengths", "mixed_with_sinks_in_a_window", "prefill_of_many_rows"]
)
def test_processors_with_less_compute_the_same(name: str, recompile: Recompile) -> None:
    recompile(cpu_backend.SOURCE, cpu_backend.FUNCTIONS)
    world = draw(TESTS[name], seed=1)
    with jax.disable_jit():
        out, _ = run(world, "cpu", "cpu")
    assert error_of(world, out) < TOLERANCE[world.case.config.dtype]


@pytest.mark.parametrize(("backend", "place"), PLACES)
@pytest.mark.parametrize("name", ["decode_of_unequal_lengths", "mixed_with_sinks_in_a_window"])
def test_second_run_is_bit_equal(name: str, backend: str, place: str) -> None:
    world, out, _ = outcome(name, backend, place)
    again, _ = run(world, backend, place)
    np.testing.assert_array_equal(again, out)


@pytest.mark.parametrize(("backend", "place"), PLACES)
def test_a_sequence_of_nan_spoils_no_other(backend: str, place: str) -> None:
    case = TESTS["mixed_with_sinks_in_a_window"]
    world = draw(case, seed=1)
    spoiled, (rows, total) = 2, case.sequences[2]
    first_row = sum(rows for rows, _ in case.sequences[:spoiled])
    of_others = np.delete(np.arange(case.num_rows), np.s_[first_row : first_row + rows])
    assert world.v is not None
    k, v, cache = world.k.copy(), world.v.copy(), world.cache.copy()
    k[first_row : first_row + rows] = v[first_row : first_row + rows] = np.nan
    cache[:, np.asarray(world.batch.page_table)[spoiled, : case.pages_for(total)]] = np.nan
    out, _ = run(replace(world, k=k, v=v, cache=cache), backend, place)
    wanted = attended(world)
    assert relative_error(out[of_others], wanted[of_others]) < TOLERANCE[case.config.dtype]


@pytest.mark.parametrize(("backend", "place"), PLACES)
def test_pages_that_do_not_exist_harm_no_other_sequence(backend: str, place: str) -> None:
    case = TESTS["mixed_with_sinks_in_a_window"]
    world = draw(case, seed=1)
    wrong, (rows, total) = 2, case.sequences[2]
    first_row = sum(rows for rows, _ in case.sequences[:wrong])
    of_others = np.delete(np.arange(case.num_rows), np.s_[first_row : first_row + rows])
    table = np.asarray(world.batch.page_table).copy()
    table[wrong, : case.pages_for(total)] = (-1, 1 << 20, 2**31 - 1, -(2**31))
    batch = replace(world.batch, page_table=jnp.asarray(table))
    out, kv = run(replace(world, batch=batch), backend, place)
    assert relative_error(out[of_others], attended(world)[of_others]) < TOLERANCE["bfloat16"]
    of_sequence = np.asarray(world.batch.page_table)[wrong, : case.pages_for(total)]
    kept = np.setdiff1d(np.arange(1, kv.shape[1]), of_sequence)
    np.testing.assert_array_equal(kv[:, kept].astype(float), written(world)[:, kept].astype(float))


@pytest.mark.parametrize(("backend", "place"), PLACES)
def test_a_sink_of_minus_infinity_takes_no_part(backend: str, place: str) -> None:
    world = draw(TESTS["mixed_with_sinks_in_a_window"], seed=1)
    world = replace(world, sinks=np.full_like(world.sinks, -np.inf))
    out, _ = run(world, backend, place)
    assert error_of(world, out) < TOLERANCE[world.case.config.dtype]
    np.testing.assert_array_equal(out[world.case.num_rows :], 0)


@pytest.mark.parametrize(("name", "backend", "place"), RACES)
def test_no_copy_races_with_a_read_or_write(
    name: str, backend: str, place: str, capfd: pytest.CaptureFixture[str]
) -> None:
    world = draw(TESTS[name], seed=1)
    run(world, backend, place, detect_races=True)
    assert "RACE DETECTED" not in capfd.readouterr().out


@pytest.mark.parametrize(("backend", "place"), PLACES)
@settings(max_examples=3)
@given(seed=st.integers(0, 2**32 - 1))
def test_computes_what_is_defined_of_any_numbers(backend: str, place: str, seed: int) -> None:
    world = draw(TESTS["mixed_with_sinks_in_a_window"], seed)
    out, _ = run(world, backend, place)
    assert error_of(world, out) < TOLERANCE[world.case.config.dtype]


@pytest.mark.parametrize(("backend", "place"), PLACES)
def test_refuses_what_it_is_known_to_refuse_and_nothing_else(backend: str, place: str) -> None:
    reasons = {}
    for name, case in TESTS.items():
        try:
            paged_attention.choose(case.config, target=target_at(place), backend=backend)
        except Unsupported as reason:
            reasons[name] = str(reason)
    known = REFUSED[backend, place]
    assert reasons.keys() == known.keys()
    assert [reason for name, reason in reasons.items() if known[name] not in reason] == []


@pytest.mark.parametrize(("backend", "place"), PLACES)
def test_devices_share_a_cache_by_its_kv_heads_alone(backend: str, place: str) -> None:
    config = TESTS["decode"].config
    one, four = (
        paged_attention.cache_spec(config, num_pages=9, backend=backend, devices=devices)
        for devices in (1, 4)
    )
    factors = {word: b // a for word, a, b in zip(one.axes, one.shape, four.shape, strict=True)}
    assert factors.pop("kv_heads") == 4
    assert set(factors.values()) == {1}
    assert one.shape[-2] == config.page_size


@pytest.mark.parametrize(("backend", "place"), PLACES)
def test_temporaries_of_longer_steps_are_estimated_higher(backend: str, place: str) -> None:
    estimates = [
        paged_attention.workspace_bytes(
            LAYERS["llama-3.1-8b"],
            target_at(place),
            num_tokens=num_tokens,
            num_sequences=64,
            max_query_length=num_tokens,
            backend=backend,
        )
        for num_tokens in (256, 8192)
    ]
    assert 0 < estimates[0] < estimates[1]


def test_every_backend_is_tested_somewhere() -> None:
    assert {backend for backend, _ in REFUSED} == set(paged_attention.BACKENDS)


def test_unknown_backend_is_named() -> None:
    names = ", ".join(paged_attention.BACKENDS)
    with pytest.raises(ValueError, match=f"backend must be one of {names}, got 'cuda'"):
        paged_attention.choose(LAYERS["llama-3.1-8b"], target=CPU, backend="cuda")


def test_cache_of_a_dtype_that_none_holds_is_refused() -> None:
    config = replace(LAYERS["llama-3.1-8b"], cache_dtype="int4")
    with pytest.raises(Unsupported, match=r"a cache holds .*, not int4"):
        paged_attention.choose(config, target=CPU)


@st.composite
def steps(draw_: st.DrawFn) -> Case:
    """Small steps of all kinds, in float32: the definition itself is tried to the last bits."""
    kv_heads, group = draw_(st.sampled_from([1, 2, 3])), draw_(st.sampled_from([1, 2, 5]))
    config = AttentionConfig(
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=draw_(st.sampled_from([8, 24])),
        page_size=draw_(st.sampled_from([4, 16, 128])),
        dtype="float32",
        cache_dtype=draw_(st.sampled_from(["float32", "float8_e4m3fn", "int8"])),
        sliding_window=draw_(st.sampled_from([None, 1, 7, 100])),
        soft_cap=draw_(st.sampled_from([None, 2.0])),
        sinks=draw_(st.booleans()),
        value_dim=draw_(st.sampled_from([None, 8])),
    )
    lengths = draw_(st.lists(st.integers(1, 200), max_size=4))
    if draw_(st.booleans()):
        return decode(config, tuple(lengths), padding=draw_(st.integers(0 if lengths else 1, 2)))
    rows = [draw_(st.integers(0, length)) for length in lengths]
    return ragged(config, *zip(rows, lengths, strict=True))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@settings(max_examples=10)
@given(case=steps(), seed=st.integers(0, 2**32 - 1))
def test_is_the_definition_to_float32_rounding(backend: str, case: Case, seed: int) -> None:
    world = draw(case, seed)
    out, kv = run(world, backend, "cpu")
    assert error_of(world, out) < TOLERANCE["float32"]
    np.testing.assert_array_equal(kv[:, 1:].astype(float), written(world)[:, 1:].astype(float))
