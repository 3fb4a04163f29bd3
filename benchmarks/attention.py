"""Measure paged attention on a CPU: in C, and the reference compiled by XLA.

    python -m benchmarks.attention
    python -m benchmarks.attention --cache-dtype bfloat16 --head-dim 128 --results FOLDER

A step has several layers, each with its own pages in random order, as in a model. The backends
alternate; the result is the median of `--repeats` steps.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np

from jaxserve.bench.machine import describe_machine
from pallas_kernels import paged_attention
from pallas_kernels.paged_attention import AttentionConfig
from pallas_kernels.paged_attention.cases import Case, decode, ragged
from pallas_kernels.paged_attention.worlds import World, draw, pack
from pallas_kernels.targets import CPU

BACKENDS = ("reference", "cpu")


def cases(config: AttentionConfig) -> dict[str, Case]:
    """Return steps that an engine makes under load: decodes, prompts, both, and a long prompt."""
    rng = np.random.default_rng(0)

    def lengths(count: int) -> tuple[int, ...]:
        return tuple(int(length) for length in rng.integers(60, 420, count))

    prompts = ((156, 156),) * 3
    return {
        "a decode of 200": decode(config, (200,)),
        "13 decodes": decode(config, lengths(13)),
        "52 decodes": decode(config, lengths(52)),
        "3 prompts of 156": ragged(config, *prompts),
        "44 decodes, 3 prompts": ragged(config, *((1, n) for n in lengths(44)), *prompts),
        "512 rows after 3584": ragged(config, (512, 4096)),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Seconds that a step takes by each backend, and what it has to read and to compute at least.

    bytes: of keys and values. flops: of scores, and of sums of values.
    """

    name: str
    bytes: int
    flops: int
    reference_s: float
    cpu_s: float

    def line(self) -> str:
        """Return a row of the table."""
        return (
            f"{self.name:<24}{self.reference_s * 1e3:>11.2f}{self.cpu_s * 1e3:>9.2f}"
            f"{self.bytes / self.cpu_s / 1e9:>8.1f}{self.flops / self.cpu_s / 1e9:>9.0f}"
            f"{self.reference_s / self.cpu_s:>8.2f}"
        )


def step_of(world: World, backend: str, layers: int) -> Callable[[], None]:
    """Return a step of so many layers, compiled, which updates its caches in place."""
    config = world.case.config
    spec = paged_attention.cache_spec(config, num_pages=world.cache.shape[1], backend=backend)
    caches = [jnp.array(pack(world.cache, spec)) for _ in range(layers)]
    q, k, v = (jnp.asarray(array) for array in (world.q, world.k, world.v))

    def attend(caches: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        out, updated = q, []
        for cache in caches:
            # A layer's queries are made of what the one before has found.
            out, after = paged_attention.attend(
                q + 1e-9 * out, k, v, cache, world.batch, world.spec, backend=backend
            )
            updated.append(after)
        return out, updated

    compiled = jax.jit(attend, donate_argnums=0).lower(caches).compile()

    def step() -> None:
        out, caches[:] = compiled(caches)
        out.block_until_ready()

    return step


def measure(config: AttentionConfig, *, layers: int, repeats: int) -> Iterator[Measured]:
    """Measure every case."""
    for name, case in cases(config).items():
        world = draw(case, seed=0)
        steps = {backend: step_of(world, backend, layers) for backend in BACKENDS}
        took: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
        for repeat in range(repeats + 1):
            for backend in BACKENDS[:: 1 if repeat % 2 else -1]:
                start_s = time.perf_counter()
                steps[backend]()
                if repeat:  # the first one is to warm up
                    took[backend].append(time.perf_counter() - start_s)
        numbers = 2 * config.kv_heads * config.head_dim
        yield Measured(
            name=name,
            bytes=layers * case.num_keys * numbers * jnp.dtype(config.cache_dtype).itemsize,
            flops=layers * case.num_pairs * 4 * config.heads * config.head_dim,
            reference_s=median(took["reference"]),
            cpu_s=median(took["cpu"]),
        )


def main() -> None:
    """Measure, print, and write down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--cache-dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--results", type=Path, help="a folder for the figures")
    args = parser.parse_args()
    config = AttentionConfig(
        heads=args.heads,
        kv_heads=args.kv_heads,
        head_dim=args.head_dim,
        page_size=args.page_size,
        dtype="float32",
        cache_dtype=args.cache_dtype,
    )
    paged_attention.choose(config, target=CPU, backend="cpu")
    machine, figures = describe_machine(), []
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"\n{'ms of':<24}{'reference':>11}{'C':>9}{'GB/s':>8}{'GFLOP/s':>9}{'ratio':>8}")
    for measured in measure(config, layers=args.layers, repeats=args.repeats):
        figures.append(asdict(measured))
        print(measured.line(), flush=True)
    if args.results is not None:
        args.results.mkdir(parents=True, exist_ok=True)
        today = datetime.now(UTC).date().isoformat()
        path = args.results / f"{today}-attention-{args.cache_dtype}.json"
        record = {
            "machine": machine,
            "config": asdict(config),
            "layers": args.layers,
            "figures": figures,
        }
        path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        print(f"\n{path}")


if __name__ == "__main__":
    main()
