"""Check the attention kernels and measure them against the limits of the device.

    python benchmarks/kernels.py --json kernels.json
    python benchmarks/kernels.py --ops decode --cases llama-3.1-8b --backends mosaic_gpu
    PALLAS_KERNELS_SIMULATE=h200 python benchmarks/kernels.py --quick      # a rehearsal on a CPU

The cases are in pallas_kernels/paged_attention/cases.py. Every backend that supports a case first
attends over pages with NaN in all empty slots, into an array of NaN, and is compared with the
reference in float32. It is then timed as in the engine, including writing keys and values: several
calls per program and several queued programs, which rotate over more pages than fit into the
device's caches. Times are medians.

For comparison, cuDNN and PyTorch run on contiguous keys and values, and cuDNN on pages, without
writing any, if all sequences of a case are equal (see the workers). Bytes and FLOP are the minimum
for a case, shown as shares of the memory bandwidth and matmul rate measured in the same run.
"""

import argparse
import json
import math
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from jaxserve.bench.ceilings import Ceilings, measure_ceilings, seconds_per_call
from jaxserve.bench.machine import describe_machine
from pallas_kernels import Unsupported, paged_attention
from pallas_kernels.paged_attention import AttentionConfig, AttentionSpec, PagedBatch
from pallas_kernels.paged_attention.cases import BENCHMARKS, Case, shrunk
from pallas_kernels.paged_attention.worlds import (
    QUERY_DEVIATION,
    SCALES,
    lay_out,
    pack,
    relative_error,
)
from pallas_kernels.targets import Target, current_target

HERE = Path(__file__).parent
REFERENCE = "reference"
WORKERS = {"cudnn": "cudnn_attention_worker.py", "torch": "torch_attention_worker.py"}
WORKER_TIMEOUT_S = 150.0

# Tolerated error of a row and head relative to its norm: three times the rounding error.
TOLERANCE = {"float32": 5e-6, "float16": 2e-3, "bfloat16": 1.2e-2}

# The calls of a program rotate over at least this many bytes of keys and values: four times the
# largest cache of a GPU (B200: 126 MB). PROGRAM_S: minimum duration at the rates of a fast device.
ROTATION_BYTES = 1 << 29
PROGRAM_S, BYTES_PER_S, FLOPS_PER_S = 2e-3, 4e12, 8e14
MOST_CALLS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Result of one contender for one case: error and time, or why it was not measured."""

    case: str
    contender: str
    num_bytes: int
    flops: int
    error: float | None = None
    seconds: float | None = None
    note: str = ""

    def line(self, ceilings: Ceilings) -> str:
        """Return a row of the table."""
        start = f"{self.case:<44}{self.contender:<14}"
        if self.seconds is None:
            return f"{start}  {self.note[:80]}"
        bytes_per_s, flops_per_s = self.num_bytes / self.seconds, self.flops / self.seconds
        error = "" if self.error is None else f"{self.error:.1e}"
        return (
            f"{start}{error:>8}{1e6 * self.seconds:>11.1f}"
            f"{bytes_per_s / 1e9:>8.0f}{100 * bytes_per_s / ceilings.bytes_per_s:>6.1f} %"
            f"{flops_per_s / 1e12:>9.2f}{100 * flops_per_s / ceilings.flops_per_s:>6.1f} %"
            f"  {self.note}"
        )


HEADER = (
    f"{'case':<44}{'who':<14}{'error':>8}{'us':>11}"
    f"{'GB/s':>8}{'memory':>8}{'TFLOP/s':>9}{'product':>8}"
)


def least_work(case: Case) -> tuple[int, int]:
    """Return the bytes that a case must move, each once, and the FLOP of its two products."""
    config = case.config
    cached, live = jnp.dtype(config.cache_dtype).itemsize, jnp.dtype(config.dtype).itemsize
    # The new keys and values are read as they come, and written as the cache holds them.
    of_token = config.num_planes * config.kv_heads * config.head_dim
    of_row = config.heads * (config.head_dim + config.result_dim)
    num_bytes = of_token * case.num_keys * cached + (of_token + of_row) * case.num_rows * live
    return num_bytes, 2 * of_row * case.num_pairs


def plan_calls(case: Case, *, is_quick: bool) -> tuple[int, int]:
    """Return how many calls a program makes, and over how many sets of pages they turn about."""
    if is_quick:
        return 2, 2
    num_bytes, flops = least_work(case)
    seconds = max(num_bytes / BYTES_PER_S, flops / FLOPS_PER_S)
    sets = min(MOST_CALLS, -(-ROTATION_BYTES // num_bytes))
    return max(sets, min(MOST_CALLS, math.ceil(PROGRAM_S / seconds))), sets


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Random arguments for a case, on the device; `cache` as the reference has it."""

    case: Case
    arrays: dict[str, Any]  # q, k, v and the spec
    cache: jax.Array
    batches: tuple[PagedBatch, ...]  # alike but for their pages


def draw(case: Case, seed: int, *, sets: int) -> Inputs:
    """Draw queries, keys and values, and `sets` times the pages that the sequences need."""
    batch, _ = lay_out(case, seed)
    every, num_written = lay_out(replace(case, sequences=case.sequences * sets), seed)
    tables = jnp.split(every.page_table[: sets * case.num_sequences], sets)
    arrays, cache = _random(
        jax.random.key(seed), num_written, config=case.config, num_tokens=case.num_tokens
    )
    batches = tuple(replace(batch, page_table=table) for table in tables)
    return Inputs(case=case, arrays=arrays, cache=cache, batches=batches)


@partial(jax.jit, static_argnames=("config", "num_tokens"))
def _random(
    key: jax.Array, num_written: jax.Array, *, config: AttentionConfig, num_tokens: int
) -> tuple[dict[str, Any], jax.Array]:
    keys = jax.random.split(key, 5)
    shapes = {
        "q": (num_tokens, config.heads, config.head_dim),
        "k": (num_tokens, config.kv_heads, config.head_dim),
        "v": (num_tokens, config.kv_heads, config.head_dim),
    }
    arrays: dict[str, Any] = {
        name: jax.random.normal(key, shape, config.dtype)
        for key, (name, shape) in zip(keys, shapes.items(), strict=False)
    }
    arrays["q"] *= QUERY_DEVIATION
    if config.value_dim is not None:
        arrays["v"] = None
    is_int8 = config.cache_dtype == "int8"
    scales = jnp.full(config.kv_heads, SCALES[0]) if is_int8 else None
    arrays["spec"] = AttentionSpec(
        scale=config.head_dim**-0.5,
        sliding_window=config.sliding_window,
        soft_cap=config.soft_cap,
        value_dim=config.value_dim,
        sinks=jax.random.normal(keys[3], (config.heads,)) if config.sinks else None,
        k_scale=scales,
        v_scale=scales if config.value_dim is None else None,
    )
    shape = (
        config.num_planes,
        len(num_written),
        config.kv_heads,
        config.page_size,
        config.head_dim,
    )
    is_written = jnp.arange(config.page_size) < num_written[:, None]
    if is_int8:
        cache = jax.random.randint(keys[4], shape, -127, 128, jnp.int8)
        return arrays, jnp.where(is_written[:, None, :, None], cache, -128)
    cache = jax.random.normal(keys[4], shape, "bfloat16").astype(config.cache_dtype)
    return arrays, jnp.where(is_written[:, None, :, None], cache, jnp.nan)


@partial(
    jax.jit,
    static_argnames=("backend", "target"),
    donate_argnames=("cache", "garbage"),
    keep_unused=True,
)
def _attend(
    arrays: dict[str, Any],
    cache: jax.Array,
    batch: PagedBatch,
    garbage: object,
    *,
    backend: str,
    target: Target,
) -> tuple[jax.Array, jax.Array]:
    """Attend, and offer XLA what is donated as `garbage` to put the result in."""
    del garbage
    return paged_attention.attend(
        **arrays, cache=cache, batch=batch, backend=backend, target=target
    )


def compute(inputs: Inputs, *, backend: str, target: Target, dtype: str) -> jax.Array:
    """Attend once with queries of `dtype`, over an own copy of the cache."""
    arrays = {**inputs.arrays, "q": inputs.arrays["q"].astype(dtype)}
    out, _ = _attend(
        arrays,
        _cache_of(inputs, backend),
        inputs.batches[0],
        jnp.full_like(arrays["q"], jnp.nan),
        backend=backend,
        target=target,
    )
    live: jax.Array = out[: inputs.case.num_rows]
    return live


def program(inputs: Inputs, *, backend: str, target: Target, calls: int) -> Callable[[], object]:
    """Return a function that starts a program of so many calls, each after the one before."""
    attend = partial(_attend, backend=backend, target=target)

    @partial(jax.jit, donate_argnames="cache")
    def run(
        arrays: dict[str, Any], cache: jax.Array, batches: tuple[PagedBatch, ...]
    ) -> tuple[list[jax.Array], jax.Array]:
        outs = []
        for call in range(calls):
            # Traced and lowered once, as jit remembers it.
            out, cache = attend(arrays, cache, batches[call % len(batches)], None)
            outs.append(out)
        return outs, cache

    cache = _cache_of(inputs, backend)

    def start() -> object:
        nonlocal cache
        outs, cache = run(inputs.arrays, cache, inputs.batches)
        # Simulations of several kernels at once would wait for each other's threads for ever.
        return jax.block_until_ready(outs) if target.is_simulated else outs

    return start


def _cache_of(inputs: Inputs, backend: str) -> jax.Array:
    """Return the cache as `backend` lays it out, for it to overwrite."""
    num_pages = inputs.cache.shape[1]
    spec = paged_attention.cache_spec(inputs.case.config, num_pages=num_pages, backend=backend)
    return jnp.copy(pack(inputs.cache, spec))


def measure(
    name: str, case: Case, backends: Sequence[str], *, target: Target, seed: int, is_quick: bool
) -> Iterator[Result]:
    """Check and time every backend on a case."""
    num_bytes, flops = least_work(case)
    calls, sets = plan_calls(case, is_quick=is_quick)
    inputs = draw(case, seed, sets=sets)
    with jax.default_matmul_precision("highest"):
        wanted = compute(inputs, backend=REFERENCE, target=target, dtype="float32")
    for backend in backends:
        result = Result(case=name, contender=backend, num_bytes=num_bytes, flops=flops)
        try:
            paged_attention.BACKENDS[backend].check(case.config, target)
        except Unsupported as reason:
            yield replace(result, note=str(reason))
            continue
        found = compute(inputs, backend=backend, target=target, dtype=case.config.dtype)
        error = relative_error(found, wanted)
        # The reference takes long enough with few calls, and long to compile with many.
        repeats = min(calls, 4) if backend == REFERENCE else calls
        start = program(inputs, backend=backend, target=target, calls=repeats)
        rounds = {"calls": 1, "rounds": 1} if is_quick else {}
        seconds = seconds_per_call(start, **rounds) / repeats
        note = "" if error < TOLERANCE[case.config.dtype] else "WRONG"
        yield replace(result, error=error, seconds=seconds, note=note)


def rivals(
    kind: str, python: str, cases: dict[str, Case], *, seed: int, is_quick: bool
) -> tuple[dict[str, str], list[Result]]:
    """Let a worker time what it can of the cases, in its own process; return its versions too."""
    jobs = {name: _job(name, case, seed, is_quick=is_quick) for name, case in cases.items()}
    lines = [json.dumps(job) for job in jobs.values() if job is not None]
    try:
        ended = subprocess.run(
            [python, str(HERE / WORKERS[kind])],
            input="\n".join(lines),
            stdout=subprocess.PIPE,
            text=True,
            timeout=WORKER_TIMEOUT_S,
            check=False,
        )
        output, fate = ended.stdout, f"ended with code {ended.returncode}"
    except subprocess.TimeoutExpired as error:
        # The bytes that came until then, as the documentation has it, also in text mode.
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else ""
        fate = f"did not end in {WORKER_TIMEOUT_S:.0f} s"
    versions, *answers = [json.loads(line) for line in output.splitlines()] or [{}]
    print(f"{kind}: {len(answers)} answers to {len(lines)} jobs; {fate}")
    results = []
    for answer in answers:
        num_bytes, flops = least_work(cases[answer["case"]])
        results.append(Result(**answer, num_bytes=num_bytes, flops=flops))
    return versions, results


def _job(name: str, case: Case, seed: int, *, is_quick: bool) -> dict[str, Any] | None:
    """Describe a case to a worker; None for what kernels without our options cannot do."""
    config = case.config
    if len(set(case.sequences)) != 1 or config.soft_cap is not None or config.sinks:
        return None
    ((rows, total),) = set(case.sequences)
    if rows not in {1, total} or config.cache_dtype != config.dtype:
        return None
    calls, sets = plan_calls(case, is_quick=is_quick)
    return {
        "case": name,
        "batch": len(case.sequences),
        "rows": rows,
        "total": total,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "page_size": config.page_size,
        "window": config.sliding_window,
        "dtype": config.dtype,
        "calls": calls,
        "sets": sets,
        "seed": seed,
    }


def rehearsed(cases: dict[str, Case]) -> dict[str, Case]:
    """Return small cases, one of each kind: simulated, a case takes five seconds to forty."""
    kinds: dict[object, tuple[str, Case]] = {}
    for name, case in cases.items():
        small, sequences = shrunk(case), case.sequences
        is_whole = all(rows in {1, total} for rows, total in sequences)
        kind = (small.config, small.is_decode, is_whole, len(sequences) > 1, len(set(sequences)))
        kinds.setdefault(kind, (name, small))
    return dict(kinds.values())


def main() -> None:
    """Measure, and print the table last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ops = sorted({name.partition("/")[0] for name in BENCHMARKS})
    parser.add_argument("--ops", nargs="+", choices=ops, default=ops)
    parser.add_argument("--cases", nargs="+", metavar="TEXT", help="those whose name has one")
    parser.add_argument("--backends", nargs="+", choices=list(paged_attention.BACKENDS))
    parser.add_argument("--torch-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--quick", action="store_true", help="few small cases, times of no meaning")
    parser.add_argument("--seed", type=int, default=secrets.randbits(31))
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    cases = {
        name: case
        for name, case in BENCHMARKS.items()
        if name.partition("/")[0] in args.ops
        and (args.cases is None or any(text in name for text in args.cases))
    }
    if args.quick:
        cases = rehearsed(cases)
    # The others first, and each in its own process: two frameworks do not share a device's memory.
    rival = partial(rivals, cases=cases, seed=args.seed, is_quick=args.quick)
    cudnn_versions, results = rival("cudnn", sys.executable)
    torch_versions, torch_results = rival("torch", args.torch_python)
    results += torch_results
    if args.quick:
        # So many threads the simulation of a thread block may need at once.
        jax.config.update("jax_num_cpu_devices", 4)
    machine = describe_machine() | cudnn_versions | torch_versions
    target, ceilings = current_target(), measure_ceilings()
    backends = args.backends or list(paged_attention.BACKENDS)
    for name, case in tqdm(cases.items(), desc="Cases", disable=None):
        results += measure(name, case, backends, target=target, seed=args.seed, is_quick=args.quick)
    if args.json is not None:
        record = {
            "command": sys.argv,
            "seed": args.seed,
            "target": asdict(target),
            "machine": machine,
            "ceilings": asdict(ceilings),
            "results": [asdict(result) for result in results],
        }
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"{ceilings.line()}; seed {args.seed}" + ("; a rehearsal" if args.quick else ""))
    print(HEADER)
    for name in cases:
        for result in results:
            if result.case == name:
                print(result.line(ceilings))
    if any(result.note == "WRONG" for result in results):
        sys.exit("a kernel computed wrong numbers")


if __name__ == "__main__":
    main()
