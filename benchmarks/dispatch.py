"""Measure the host time to dispatch a program, depending on how parameters are passed.

    python benchmarks/dispatch.py --layers 32 --json dispatch.json

The program computes almost nothing but has a step's arguments: parameters, donated cache and state,
and packed host data. The table shows microseconds of the calling thread's CPU time per call, the
best of several alternating rounds.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxserve.bench.machine import describe_machine

CALLS, ROUNDS = 200, 9
# As the decoder's layers hold them: norms, queries, keys, values, output, gate, up, down.
SPLIT = ("input_norm", "post_norm", "q", "k", "v", "o", "gate", "up", "down")
FUSED = ("input_norm", "post_norm", "qkv", "o", "gate_up", "down")

type Call = Callable[[Any, Any], tuple[Any, Any]]


def layers(count: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Return small parameters in the tree of a decoder of `count` layers."""
    leaf = jnp.zeros(8)
    return {
        "embedding": leaf + 0,
        "norm": leaf + 0,
        "layers": {str(i): {name: {"w": leaf + 0} for name in names} for i in range(count)},
    }


def step(params: Any, cache: Any, state: Any, *packed: jax.Array) -> tuple[jax.Array, Any, Any]:
    """Touch little, but keep every argument."""
    del params
    total = jnp.stack([array[0].astype(jnp.int32) for array in packed])
    return total, cache, jax.tree.map(lambda leaf: leaf + 1, state)


def kept(count: int) -> tuple[Any, Any]:
    """Return a cache of `count` layers, and a state of as many leaves as SlotState."""
    return tuple(jnp.zeros((4, 8)) for _ in range(count)), [jnp.zeros(8) for _ in range(8)]


def ways(count: int) -> dict[str, Call]:
    """Return each way to call the program, as a function of cache and state."""
    one = (np.zeros(20_000, np.int32),)
    two = (one[0], np.zeros(2_000, np.float32))
    jitted = jax.jit(step, donate_argnums=(1, 2), keep_unused=True)

    def compiled(params: Any, packed: tuple[np.ndarray, ...]) -> Call:
        program = jitted.lower(params, *kept(count), *packed).compile()

        def call(cache: Any, state: Any) -> tuple[Any, Any]:
            _, cache, state = program(params, cache, state, *packed)
            return cache, state

        return call

    def by_jit(params: Any, packed: tuple[np.ndarray, ...]) -> Call:
        def call(cache: Any, state: Any) -> tuple[Any, Any]:
            _, cache, state = jitted(params, cache, state, *packed)
            return cache, state

        return call

    split, fused = layers(count, SPLIT), layers(count, FUSED)
    stacked = {
        "embedding": jnp.zeros(8),
        "norm": jnp.zeros(8),
        "layers": {name: jnp.zeros((count, 8)) for name in FUSED},
    }
    flat = jax.tree.leaves(fused)
    return {
        f"compiled, {len(jax.tree.leaves(split))} leaves, two arrays packed": compiled(split, two),
        f"compiled, {len(jax.tree.leaves(split))} leaves": compiled(split, one),
        f"compiled, {len(flat)} leaves (fused)": compiled(fused, one),
        f"compiled, {len(flat)} leaves, as a flat list": compiled(flat, one),
        f"compiled, {len(jax.tree.leaves(stacked))} leaves (stacked)": compiled(stacked, one),
        f"jit, {len(flat)} leaves (fused)": by_jit(fused, one),
        f"jit, {len(flat)} leaves, as a flat list": by_jit(flat, one),
        f"jit, {len(jax.tree.leaves(stacked))} leaves (stacked)": by_jit(stacked, one),
    }


def microseconds(call: Call, count: int) -> float:
    """Return what a call takes of the thread's time, over a round of calls."""
    cache, state = kept(count)
    for _ in range(3):
        cache, state = call(cache, state)
    jax.block_until_ready(state)
    spent_s = 0.0
    for _ in range(CALLS):
        start_s = time.thread_time()
        cache, state = call(cache, state)
        spent_s += time.thread_time() - start_s
        jax.block_until_ready(state)  # a call would wait for the one before, and that is no cost
    return spent_s / CALLS * 1e6


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=32, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    machine = describe_machine()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    calls = ways(args.layers)
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            rounds[name].append(microseconds(call, args.layers))
    print(f"{'microseconds a call':<44}{'best':>8}{'median':>8}")
    for name, values in rounds.items():
        print(f"{name:<44}{min(values):>8.1f}{median(values):>8.1f}")
    if args.json is not None:
        record = {"machine": machine, "layers": args.layers, "microseconds": rounds}
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
