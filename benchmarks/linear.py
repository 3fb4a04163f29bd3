"""Measure matmuls with weights on a CPU: in XLA, and with packed matrices.

    python -m benchmarks.linear
    python -m benchmarks.linear --sizes 4096x6144 4096x28672 --rows 1 16 512 --results FOLDER

Both alternate; the result is the best of `--repeats` calls, because other load slows both. int8
includes dynamic quantization of activations, which XLA does in float32 and int8.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxserve.bench.machine import describe_machine
from jaxserve.layers.linear import ALL_ROWS, einsum
from jaxserve.quantization.int8 import quantize
from pallas_kernels import packed_linear
from pallas_kernels.targets import CPU

# Those of a Llama of 40 million parameters, its head, and one whose rows lie a power of 2 apart.
SIZES = ("512x1024", "512x512", "512x2816", "1408x512", "512x32000", "4096x1024")
ROWS = (1, 8, 16, 64, 512)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Seconds that a product takes at best, by each."""

    kind: str
    inputs: int
    channels: int
    rows: int
    xla_s: float
    packed_s: float

    def line(self) -> str:
        """Return a row of the table: GFLOP/s, and how many times as fast."""
        gflops = 2e-9 * self.rows * self.inputs * self.channels
        return (
            f"{self.kind:<10}{self.inputs}x{self.channels:<10}{self.rows:>6}"
            f"{gflops / self.xla_s:>8.0f}{gflops / self.packed_s:>8.0f}"
            f"{self.xla_s / self.packed_s:>8.2f}"
        )


def measure(inputs: int, channels: int, rows: list[int], *, repeats: int) -> Iterator[Measured]:
    """Measure a matrix of each kind with each number of rows."""
    weight = jax.random.normal(jax.random.key(0), (inputs, channels))
    quantized = quantize(weight, (0,))
    pack = jax.jit(partial(packed_linear.pack, summed=(0,), dtype="float32"))
    matrices: dict[str, tuple[Any, Any]] = {
        "float32": (weight, pack(weight)),
        "int8": (quantized, pack(quantized.values, scales=quantized.scales)),
    }
    multiply = jax.jit(partial(einsum, "td,df->tf", rows=ALL_ROWS))
    for kind, (matrix, packed) in matrices.items():
        for num_rows in rows:
            x = jax.random.normal(jax.random.key(1), (num_rows, inputs))
            best = [inf, inf]
            for repeat in range(repeats + 1):
                for i, weights in enumerate((matrix, packed)):
                    start_s = time.perf_counter()
                    multiply(x, weights).block_until_ready()
                    if repeat:  # the first one compiles
                        best[i] = min(best[i], time.perf_counter() - start_s)
            yield Measured(
                kind=kind,
                inputs=inputs,
                channels=channels,
                rows=num_rows,
                xla_s=best[0],
                packed_s=best[1],
            )


def main() -> None:
    """Measure, print, and write down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="INPUTSxCHANNELS")
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--results", type=Path, help="a folder for the figures")
    args = parser.parse_args()
    packed_linear.check(CPU, jnp.float32)
    machine, figures = describe_machine(), []
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"\n{'GFLOP/s of':<10}{'':<14}{'rows':>6}{'XLA':>8}{'packed':>8}{'ratio':>8}")
    for size in args.sizes:
        inputs, channels = map(int, size.split("x"))
        for measured in measure(inputs, channels, args.rows, repeats=args.repeats):
            figures.append(asdict(measured))
            print(measured.line(), flush=True)
    if args.results is not None:
        args.results.mkdir(parents=True, exist_ok=True)
        path = args.results / f"{datetime.now(UTC).date().isoformat()}-linear.json"
        record = {"machine": machine, "figures": figures}
        path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        print(f"\n{path}")


if __name__ == "__main__":
    main()
