"""Measures what a step costs the host: everything but the wait for the device.

    python benchmarks/host.py MODEL --sequences 256

A real engine on a real runner decodes `--sequences` greedy requests at once; the table shows
milliseconds per step, each part on its own. `wait` is the device's time as the host sees it, the
rest is what Python needs. A small model serves best, as the host's part hardly depends on it.
"""

import argparse
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from tqdm import tqdm

from jaxserve.bench.machine import describe_machine
from jaxserve.build import LoadedModel, build
from jaxserve.config import EngineOptions
from jaxserve.engine.engine import Engine
from jaxserve.engine.scheduler import Scheduler
from jaxserve.engine.sequence import Update
from jaxserve.execution.runner import ModelRunner, PendingResult
from jaxserve.metrics import Metrics
from jaxserve.plan import StepPlan, StepResult
from jaxserve.planning import plan_engine
from jaxserve.request import Request, SamplingParams

PROMPT_TOKENS = 8


class Clock:
    """Collects the seconds of each part of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def time[R](self, part: str, work: Callable[[], R]) -> R:
        """Do the work, and add what it took to a part."""
        start_s = time.perf_counter()
        result = work()
        self.seconds.setdefault(part, []).append(time.perf_counter() - start_s)
        return result


class TimedScheduler(Scheduler):
    """A scheduler that tells a clock how long its verbs take."""

    def __init__(self, clock: Clock, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._bench = clock

    def schedule(self) -> StepPlan | None:
        """See Scheduler."""
        return self._bench.time("schedule", super().schedule)

    def commit(self, plan: StepPlan, result: StepResult) -> list[Update]:
        """See Scheduler."""
        commit = super().commit
        return self._bench.time("commit", lambda: commit(plan, result))


class TimedStep:
    """A step under way whose wait, and the reading of its result, is timed."""

    def __init__(self, clock: Clock, pending: PendingResult) -> None:
        self._clock = clock
        self._pending = pending

    def wait(self) -> StepResult:
        """See plan.PendingStep."""
        return self._clock.time("wait", self._pending.wait)


class TimedRunner:
    """A runner whose dispatch is timed."""

    def __init__(self, clock: Clock, runner: ModelRunner) -> None:
        self._clock = clock
        self._runner = runner

    def dispatch(self, plan: StepPlan) -> TimedStep:
        """See plan.Runner."""
        pending = self._clock.time("dispatch", lambda: self._runner.dispatch(plan))
        return TimedStep(self._clock, pending)


def timed_engine(loaded: LoadedModel, clock: Clock) -> Engine:
    """Return an engine like the one that was built, with clocks in it and as served: metrics on."""
    plan = loaded.plan
    return Engine(
        TimedScheduler(clock, plan.scheduler, plan.cache, eos_ids=loaded.tokenizer.eos_ids),
        TimedRunner(clock, loaded.runner),
        vocab_size=plan.model.vocab_size,
        tokenizer=loaded.tokenizer.backend,
        metrics=Metrics(max_model_len=plan.scheduler.max_model_len).engine("bench"),
    )


def measure(loaded: LoadedModel, *, num_sequences: int, num_steps: int) -> dict[str, float]:
    """Return the median milliseconds of each part of a step that decodes all sequences."""
    clock = Clock()
    engine = timed_engine(loaded, clock)
    draw = random.Random(0)
    params = SamplingParams(temperature=0, max_tokens=2 * num_steps, ignore_eos=True)
    for index in range(num_sequences):
        prompt_ids = (draw.randrange(loaded.plan.model.vocab_size) for _ in range(PROMPT_TOKENS))
        engine.add(Request(id=str(index), prompt_ids=tuple(prompt_ids), params=params))
    for _ in range(num_steps // 2):  # until all of them decode
        engine.step()
    clock.seconds.clear()
    for _ in tqdm(range(num_steps), desc="Steps", disable=None):
        clock.time("step", engine.step)
    parts = {part: median(seconds) * 1e3 for part, seconds in clock.seconds.items()}
    step = parts.pop("step")
    parts["events"] = step - sum(parts.values())
    return {**parts, "step": step, "step without wait": step - parts["wait"]}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", nargs="?")
    parser.add_argument("--sequences", type=int, default=256, metavar="N")
    parser.add_argument("--steps", type=int, default=200, metavar="N")
    args = parser.parse_args()
    options = EngineOptions(
        model=args.model, max_num_seqs=args.sequences, enable_prefix_caching=False
    )
    loaded = build(plan_engine(options), report=print)
    print(", ".join(f"{name} {value}" for name, value in describe_machine().items()))
    print(f"{loaded.plan.name}, {args.sequences} sequences decoding, median of {args.steps} steps")
    for part, ms in measure(loaded, num_sequences=args.sequences, num_steps=args.steps).items():
        print(f"{part:<18}{ms:9.3f} ms")


if __name__ == "__main__":
    main()
