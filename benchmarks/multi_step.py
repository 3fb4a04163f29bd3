"""Measure the possible gain from several decode steps in one program.

    python benchmarks/multi_step.py MODEL --batch 1 8 32 --steps 8

Three ways to decode the same batch alternate: the engine (scheduler, async dispatch, events); its
programs alone, with one dispatch per step and plans made in advance, so that the host is idle; and
`--steps` steps in one program, a loop on the device that feeds each token to the next step. The
upper bound of the gain is the first divided by the third, for time and for CPU time, which other
processes disturb less. Tokens are not checked: the loop ignores stop conditions, which would only
slow it down.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
from jax import lax

from jaxserve.api.plan import RowPlan, SlotAssignment
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.bench.machine import describe_machine
from jaxserve.bench.workload import Job
from jaxserve.execution.batch import Rows, SlotTable, pack
from jaxserve.execution.programs import Helper
from jaxserve.execution.shapes import FULL, GREEDY, StepShape
from jaxserve.execution.step import step
from jaxserve.models import random_params
from jaxserve.offline.llm import LLM
from jaxserve.planning.engine_plan import EnginePlan

CONTEXT = 64


class Device:
    """The programs of a batch that decodes, with a cache and a state of their own."""

    def __init__(self, plan: EnginePlan, *, batch: int, num_steps: int) -> None:
        self._num_steps = num_steps
        pages = plan.shapes.shapes[0].pages
        self._shape = shape = StepShape(batch, batch, pages, FULL, branches=True)
        params = random_params(plan.model, plan.layout, seed=0)
        self._leaves = leaves = tuple(jax.tree.leaves(params))
        programs = plan.programs
        self._cache, self._state = programs.compile(params, Helper.ALLOCATE)()
        self._one = programs.compile(params, shape)
        table = SlotTable(num_slots=plan.num_slots, pages=pages)
        greedy = SamplingParams(temperature=0)
        rows = []
        for row in range(batch):
            slot = row + 1
            table.assign(SlotAssignment(slot=slot, params=greedy, seed=0, prompt_ids=(0,)))
            table.page_table[slot] = np.arange(pages) + 1 + row * pages
            rows.append(RowPlan(slot=slot, start=CONTEXT, num_tokens=1, token_ids=()))
        self._packed = pack(Rows(tuple(rows)), GREEDY, shape, table)

        def many(leaves: Any, cache: Any, state: Any, packed: jax.Array) -> Any:
            tree = jax.tree.structure(params)

            def one(_: int, carry: Any) -> Any:
                _, cache, state, packed = carry
                output, cache, state = step(
                    jax.tree.unflatten(tree, leaves),
                    cache,
                    state,
                    packed,
                    shape=shape,
                    context=plan.context,
                )
                records = packed[2 : 2 + batch * width].reshape(batch, width)
                records = records.at[:, 0].add(1)  # one position further on
                packed = lax.dynamic_update_slice(packed, records.reshape(-1), (2,))
                return output.tokens, cache, state, packed

            tokens = jax.numpy.zeros((3, batch), np.int32)
            return lax.fori_loop(0, num_steps, one, (tokens, cache, state, packed))

        width = table.records.shape[1]
        jitted = jax.jit(many, donate_argnums=(1, 2))
        self._many = jitted.lower(leaves, self._cache, self._state, self._packed).compile()

    def one_by_one(self) -> None:
        """Decode, a dispatch a step."""
        tokens: Any = None
        for _ in range(self._num_steps):
            output, self._cache, self._state = self._one(
                self._leaves, self._cache, self._state, self._packed
            )
            tokens = output.tokens
        np.asarray(tokens)

    def at_once(self) -> None:
        """Decode, one dispatch for all steps."""
        tokens, self._cache, self._state, _ = self._many(
            self._leaves, self._cache, self._state, self._packed
        )
        np.asarray(tokens)


@contextmanager
def decoding(llm: LLM, batch: int) -> Iterator[Callable[[], None]]:
    """Give a function that lets the engine decode one step of a batch that never ends."""
    jobs = [Job((5,) * CONTEXT, 1 << 20) for _ in range(batch)]
    engine = llm._engine.engine  # noqa: SLF001  (its steps are what is measured)
    room = llm.plan.scheduler.max_model_len - CONTEXT
    for index, job in enumerate(jobs):
        engine.add(Job(job.prompt_ids, room).request(f"{batch} {index}"))
    for _ in range(batch + 4):
        engine.step()
    yield engine.step  # type: ignore[misc]
    for index in range(batch):
        engine.abort(f"{batch} {index}")
    while engine.has_work:
        engine.step()


def measure(llm: LLM, *, batch: int, num_steps: int, rounds: int) -> dict[str, Any]:
    """Return milliseconds a step of each way, and ratios of the rounds."""
    device = Device(llm.plan, batch=batch, num_steps=num_steps)
    with decoding(llm, batch) as engine_step:

        def engine() -> None:
            for _ in range(num_steps):
                engine_step()

        ways = {"engine": engine, "one_by_one": device.one_by_one, "at_once": device.at_once}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        work: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            way()
        for _ in range(rounds):
            for name, way in ways.items():
                start_s, spent_s = time.perf_counter(), time.process_time()
                way()
                seconds[name].append((time.perf_counter() - start_s) / num_steps)
                work[name].append((time.process_time() - spent_s) / num_steps)

    def ratio(name: str, values: dict[str, list[float]]) -> float:
        return median(map(float.__truediv__, values[name], values["at_once"]))

    return {
        "batch": batch,
        **{f"{name}_ms": median(values) * 1e3 for name, values in seconds.items()},
        "engine_over_at_once": ratio("engine", seconds),
        "one_by_one_over_at_once": ratio("one_by_one", seconds),
        "work": {f"{name}_ms": median(values) * 1e3 for name, values in work.items()},
        "work_engine_over_at_once": ratio("engine", work),
        "work_one_by_one_over_at_once": ratio("one_by_one", work),
    }


HEADER = f"{'batch':>6}" + "".join(
    f"{of:>12}{'engine/loop':>13}{'alone/loop':>12}" for of in ("loop ms", "loop cpu ms")
)


def line(result: dict[str, Any]) -> str:
    """Return a row of the table."""
    return (
        f"{result['batch']:>6}{result['at_once_ms']:>12.2f}"
        f"{result['engine_over_at_once']:>13.3f}{result['one_by_one_over_at_once']:>12.3f}"
        f"{result['work']['at_once_ms']:>12.2f}"
        f"{result['work_engine_over_at_once']:>13.3f}"
        f"{result['work_one_by_one_over_at_once']:>12.3f}"
    )


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], metavar="N")
    parser.add_argument("--steps", type=int, default=8, metavar="N")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    machine = describe_machine()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    length = CONTEXT + 4 * max(args.batch) + (args.rounds + 2) * args.steps + 64
    llm = LLM(
        args.model,
        max_num_seqs=max(args.batch),
        max_model_len=length,
        enable_prefix_caching=False,
        load_format="dummy",
        report=print,
    )
    print(f"{llm.plan.name}, {args.steps} steps, {args.rounds} rounds, milliseconds a step")
    print(HEADER)
    results = []
    for batch in args.batch:
        result = measure(llm, batch=batch, num_steps=args.steps, rounds=args.rounds)
        results.append(result)
        print(line(result), flush=True)
    if args.json is not None:
        record = {"model": llm.plan.name, "machine": machine, "results": results}
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
