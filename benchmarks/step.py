"""Measure the step alone with random weights: no scheduler, text or server.

    python benchmarks/step.py llama-3.1-8b --batch 1 64 256 --context 1024 --json step.json

First computes the largest `--batch` of sequences with the largest `--context` of random tokens, in
chunks. Then all or some of them decode from the end of each context; shorter contexts are prefixes
of the longest. Steps follow each other as in serving, each reading the previous token on the
device. Plans are made in advance, so the result is device time, and nothing is compiled during the
measurement. The table compares it with the bytes and FLOP of the step at the memory bandwidth and
matmul rate measured in the same run. MODEL is a folder with a config.json, or the name of a
published shape; no weights are read.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import jax
from tqdm import tqdm

from jaxserve.api.plan import RowPlan, SlotAssignment, StepPlan, TableWrite
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.bench.ceilings import Ceilings, measure_ceilings
from jaxserve.bench.machine import describe_machine
from jaxserve.config.engine import EngineOptions
from jaxserve.execution.attention import check_attention
from jaxserve.execution.compilation import CompilationCounter
from jaxserve.execution.memory import tree_bytes
from jaxserve.execution.program_pool import ProgramPool
from jaxserve.execution.runner import ModelRunner
from jaxserve.models import abstract_params, random_params
from jaxserve.planning.engine_plan import EnginePlan
from jaxserve.planning.planner import plan_engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Steps of one kind: how long each took, and the least it had to read and compute.

    step_ms: with steps queued behind each other; latency_ms: with the host waiting for each.
    """

    kind: str
    batch: int
    context: int
    tokens: int
    step_ms: float
    latency_ms: float
    bytes: int
    flops: float

    def line(self, ceilings: Ceilings) -> str:
        """Return a row of the table."""
        bytes_per_s, flops_per_s = (
            amount / self.step_ms * 1e3 for amount in (self.bytes, self.flops)
        )
        return (
            f"{self.kind:<8}{self.batch:>6}{self.context:>9}{self.tokens:>8}"
            f"{self.step_ms:>11.3f}{self.latency_ms:>12.3f}"
            f"{self.tokens / self.step_ms * 1e3:>11.0f}"
            f"{bytes_per_s / 1e9:>9.0f}{100 * bytes_per_s / ceilings.bytes_per_s:>6.0f} %"
            f"{flops_per_s / 1e12:>9.2f}{100 * flops_per_s / ceilings.flops_per_s:>6.0f} %"
        )


HEADER = (
    f"{'kind':<8}{'batch':>6}{'context':>9}{'tokens':>8}{'step ms':>11}{'latency ms':>12}"
    f"{'tokens/s':>11}{'GB/s':>9}{'memory':>8}{'TFLOP/s':>9}{'product':>8}"
)


class Bench:
    """A runner with random weights, and the least that its steps must read and compute."""

    def __init__(self, plan: EnginePlan) -> None:
        params = random_params(plan.model, plan.layout, seed=0)
        self._plan = plan
        self._runner = ModelRunner(
            params,
            context=plan.context,
            programs=ProgramPool(partial(plan.programs.compile, params)),
            shapes=plan.shapes,
            num_slots=plan.scheduler.max_num_seqs + 1,
        )
        # The embedding is looked up, not read, unless it is the head as well.
        read, described = dict(params), abstract_params(plan.model)
        if not plan.model.tied_embeddings:
            del read["embedding"], described["embedding"]
        self._weight_bytes = tree_bytes(read)
        self._num_weights = sum(leaf.size for leaf in jax.tree.leaves(described))
        self._head = plan.model.vocab_size * plan.model.embed
        self._page_bytes = plan.memory.page
        self._random = random.Random(0)
        self._compilations = CompilationCounter()

    def measure(
        self, batches: Sequence[int], contexts: Sequence[int], *, num_steps: int
    ) -> Iterator[Measured]:
        """Fill the sequences, then measure prompts of each length, and decodes, longest first."""
        longest = max(contexts)
        pages = self._page_numbers(max(batches), longest + 3 * num_steps)
        fills = [self._fill(slot, pages[slot - 1], longest) for slot in range(1, max(batches) + 1)]
        for steps in tqdm(fills, desc="Sequences", disable=None):
            self._run(steps)
        for context in sorted(contexts, reverse=True):
            steps = self._fill(1, pages[0], context)
            self._run(steps[:1])  # compiles
            yield self._measured("prefill", 1, context, steps)
            for batch in batches:
                decodes = [
                    StepPlan(
                        rows=tuple(
                            RowPlan(slot=slot, start=context + step, num_tokens=1, token_ids=())
                            for slot in range(1, batch + 1)
                        )
                    )
                    for step in range(num_steps)
                ]
                self._run(decodes[:2])
                yield self._measured("decode", batch, context, decodes)

    def _fill(self, slot: int, pages: tuple[int, ...], context: int) -> list[StepPlan]:
        """Return the steps that compute a sequence."""
        chunk = min(self._plan.scheduler.max_num_batched_tokens, context)
        return [
            StepPlan(
                rows=(self._prompt_row(slot, start, min(chunk, context - start), pages),),
                assignments=(self._assignment(slot),) if start == 0 else (),
            )
            for start in range(0, context, chunk)
        ]

    def _measured(self, kind: str, batch: int, context: int, steps: Sequence[StepPlan]) -> Measured:
        tokens = steps[0].num_tokens
        self._compilations.mark()
        queued_s, waited_s = self._run(steps), self._run(steps, wait=True)
        assert self._compilations.since_mark == 0, "a program was compiled while the clock ran"
        model, rows = self._plan.model, steps[0].rows
        attended = sum((row.start + (row.num_tokens + 1) / 2) * row.num_tokens for row in rows)
        per_pair = sum(layer.mixer.pair_flops(devices=1) for layer in model.layers)
        flops = 2 * (self._num_weights - self._head) * tokens + 2 * self._head * len(rows)
        cached = sum(row.start + row.num_tokens for row in rows)
        return Measured(
            kind=kind,
            batch=batch,
            context=context,
            tokens=tokens,
            step_ms=queued_s / len(steps) * 1e3,
            latency_ms=waited_s / len(steps) * 1e3,
            bytes=self._weight_bytes + cached * self._page_bytes // self._plan.cache.page_size,
            flops=(flops + per_pair * attended) / self._plan.context.mesh.size,
        )

    def _run(self, plans: Sequence[StepPlan], *, wait: bool = False) -> float:
        """Return the seconds that these steps take."""
        start_s = time.perf_counter()
        pending = None
        for plan in plans:
            pending = self._runner.dispatch(plan)
            if wait:
                pending.wait()
        if pending is not None:
            pending.wait()
        return time.perf_counter() - start_s

    def _page_numbers(self, batch: int, tokens: int) -> list[tuple[int, ...]]:
        """Deal the pages out at random, as after days of serving."""
        each = -(-tokens // self._plan.cache.page_size)
        numbers = list(range(1, self._plan.memory.num_pages))
        self._random.shuffle(numbers)
        return [tuple(numbers[i * each : (i + 1) * each]) for i in range(batch)]

    def _prompt_row(
        self, slot: int, start: int, num_tokens: int, pages: tuple[int, ...]
    ) -> RowPlan:
        vocab_size = self._plan.model.vocab_size
        return RowPlan(
            slot=slot,
            start=start,
            num_tokens=num_tokens,
            token_ids=tuple(self._random.randrange(vocab_size) for _ in range(num_tokens)),
            table=(TableWrite(0, pages),) if start == 0 else (),
        )

    def _assignment(self, slot: int) -> SlotAssignment:
        params = SamplingParams(temperature=0, ignore_eos=True)
        return SlotAssignment(slot=slot, params=params, seed=0, prompt_ids=(0,))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64], metavar="N")
    parser.add_argument("--context", type=int, nargs="+", default=[1024], metavar="TOKENS")
    parser.add_argument("--steps", type=int, default=64, metavar="N")
    parser.add_argument("--attention-backend", metavar="NAME")
    parser.add_argument("--max-model-len", type=int, metavar="TOKENS")
    parser.add_argument("--tensor-parallel-size", type=int, default=1, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    plan = plan_engine(
        EngineOptions(
            model=args.model,
            max_num_seqs=max(args.batch),
            max_model_len=args.max_model_len or max(args.context) + 3 * args.steps,
            tensor_parallel_size=args.tensor_parallel_size,
            attention_backend=args.attention_backend,
        )
    )
    check_attention(plan.context.attention)
    machine = describe_machine()
    ceilings = measure_ceilings(packed=plan.linear.packed)
    bench = Bench(plan)
    measured = list(bench.measure(args.batch, args.context, num_steps=args.steps))
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"{plan.name}, {plan.dtype}, attention: {plan.context.attention.choice}")
    print(ceilings.line())
    print(HEADER)
    for result in measured:
        print(result.line(ceilings))
    if args.json is not None:
        record = {
            "model": plan.name,
            "dtype": plan.dtype,
            "attention": str(plan.context.attention.choice),
            "machine": machine,
            "ceilings": asdict(ceilings),
            "measured": [asdict(result) for result in measured],
        }
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
