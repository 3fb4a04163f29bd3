"""Measure the host time of a step: everything except waiting for the device.

    python benchmarks/host.py --sequences 1 8 32 128 256 512 --json host.json

Engine, scheduler, packing, metrics and reading of results are real. Compiled programs are replaced
by functions that immediately return the same tokens, so a step takes the time of its Python code.
All sequences decode greedily. The table shows the median and 99th percentile in microseconds per
step and phase (see jaxserve/observability/timeline.py). Times are CPU times of the thread, so other
load has little effect. --model only gives sizes: no weights are read, and the host time hardly
depends on them.
"""

import argparse
import gc
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxserve.api.engine_config import DEFAULT_MAX_LOGPROBS
from jaxserve.api.model_limits import ModelLimits
from jaxserve.api.request import Request
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.bench.machine import describe_machine
from jaxserve.config.engine import EngineOptions
from jaxserve.engine.engine import Engine
from jaxserve.engine.scheduler import Scheduler
from jaxserve.execution.heads.sample import SampleStatus, StepOutput
from jaxserve.execution.program_pool import ProgramPool
from jaxserve.execution.programs import Helper, Program, all_programs
from jaxserve.execution.runner import ModelRunner
from jaxserve.execution.sampling import no_report
from jaxserve.execution.shapes import StepShape
from jaxserve.observability.metrics import Metrics
from jaxserve.observability.timeline import PHASES, StepRecord
from jaxserve.planning.engine_plan import EnginePlan
from jaxserve.planning.planner import plan_engine

PROMPT_TOKENS = 8
PAGE_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCost:
    """Microseconds per step at one number of running sequences."""

    sequences: int
    steps: int
    p50_us: dict[str, float]
    p99_us: dict[str, float]

    def line(self) -> str:
        """Return a row of the table: medians, and both of the whole."""
        cells = "".join(f"{self.p50_us[phase]:>10.1f}" for phase in PHASES)
        return f"{self.sequences:>9}{cells}{self.p50_us['host']:>10.1f}{self.p99_us['host']:>10.1f}"


HEADER = f"{'sequences':>9}{''.join(f'{p:>10}' for p in PHASES)}{'host':>10}{'host p99':>10}"


def played(program: Program) -> Callable[..., object]:
    """Return a stand-in of a compiled program: the device's part, in no time."""
    if isinstance(program, StepShape):
        rows = program.sequences
        output = StepOutput(
            tokens=jnp.tile(jnp.array([[SampleStatus.SAMPLED], [1], [7]], jnp.int32), (1, rows)),
            logprobs=no_report(rows, num_top=DEFAULT_MAX_LOGPROBS),
            prompt_logprobs=None,
        )
        jax.block_until_ready(output)
        return lambda _params, cache, state, *_packed: (output, cache, state)
    if program is Helper.ALLOCATE:
        return lambda: (None, None)
    if program is Helper.ASSIGN:
        return lambda state, _slot, _memory: state
    return lambda _params, state, _packed: (None, state)


def played_runner(plan: EnginePlan) -> ModelRunner:
    """Return the real runner, on programs that are played, without weights."""

    def make(program: Program) -> jax.stages.Compiled:
        return cast(jax.stages.Compiled, played(program))

    programs = ProgramPool(make)
    for program in all_programs(plan.shapes):  # so that the runner has all shapes to choose from
        programs.get(program)
    return ModelRunner(
        plan.abstract_params(),
        context=plan.context,
        programs=programs,
        shapes=plan.shapes,
        num_slots=plan.num_slots,
        clock=time.thread_time,
    )


def measure(plan: EnginePlan, *, num_sequences: int, num_steps: int) -> HostCost:
    """Return what a step that decodes all sequences costs the host."""
    vocab_size = plan.model.vocab_size
    engine = Engine(
        Scheduler(plan.scheduler, plan.cache),
        played_runner(plan),
        ModelLimits(vocab_size=vocab_size),
        metrics=Metrics(max_model_len=plan.scheduler.max_model_len).engine("bench"),
        clock=time.thread_time,
    )
    draw = random.Random(0)
    params = SamplingParams(temperature=0, max_tokens=2 * num_steps, ignore_eos=True)
    for index in range(num_sequences):
        prompt_ids = (draw.randrange(vocab_size) for _ in range(PROMPT_TOKENS))
        engine.add(Request(id=str(index), prompt_ids=tuple(prompt_ids), params=params))
    for _ in range(num_steps // 2):  # until all of them decode
        engine.step()
    gc.collect()
    engine.timeline.recent.clear()
    for _ in range(num_steps):
        engine.step()
    records = list(engine.timeline.recent)
    assert {record.num_tokens for record in records} == {num_sequences}
    return summarize(records, num_sequences)


def summarize(records: Sequence[StepRecord], num_sequences: int) -> HostCost:
    """Return the percentiles of every phase."""
    seconds: dict[str, Any] = {
        phase: [getattr(record, f"{phase}_s") for record in records] for phase in PHASES
    }
    seconds["host"] = [record.host_s + record.wait_s for record in records]
    p50, p99 = (
        {name: float(np.percentile(values, q)) * 1e6 for name, values in seconds.items()}
        for q in (50, 99)
    )
    return HostCost(sequences=num_sequences, steps=len(records), p50_us=p50, p99_us=p99)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", metavar="MODEL", help="(default: the embedded one)")
    parser.add_argument(
        "--sequences", type=int, nargs="+", default=[1, 8, 32, 64, 128, 256, 512], metavar="N"
    )
    parser.add_argument("--steps", type=int, default=400, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    machine = describe_machine()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    plan = plan_engine(
        EngineOptions(
            max_decode_slowdown=inf,  # start all decodes quickly
            page_size=PAGE_SIZE,
            model=args.model,
            max_num_seqs=max(args.sequences),
            max_num_batched_tokens=max(512, *args.sequences),
            enable_prefix_caching=False,
        )
    )
    # Avoid preemption, with room for a sequence of maximum length.
    each = 2 + (PROMPT_TOKENS + 2 * args.steps) // PAGE_SIZE
    longest = plan.shapes.shapes[0].pages
    plan = plan.with_num_pages(1 + max(max(args.sequences) * each, longest))
    print(f"{plan.name}, microseconds per step, medians of {args.steps} steps")
    print(HEADER)
    results = []
    for num_sequences in args.sequences:
        results.append(measure(plan, num_sequences=num_sequences, num_steps=args.steps))
        print(results[-1].line(), flush=True)
    if args.json is not None:
        record = {
            "model": plan.name,
            "machine": machine,
            "results": [asdict(result) for result in results],
        }
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
