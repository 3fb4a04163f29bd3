"""A device on a virtual clock, to run the real scheduler without computing anything."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf

from jaxserve.api.engine_config import WorkModel
from jaxserve.api.plan import StepPlan, StepResult
from jaxserve.api.request import Request
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.engine.scheduler import Scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Cost model of a device.

    token_s: seconds per token, the unit of `work`. step_s: constant seconds per step. sizes: padded
    tokens of steps with chunks. decode_sizes: padded sequences of decode steps.
    """

    name: str
    token_s: float
    step_s: float
    work: WorkModel
    sizes: tuple[int, ...]
    decode_sizes: tuple[int, ...]

    def seconds(self, plan: StepPlan) -> float:
        """Return how long a step takes."""
        work, num_tokens = 0.0, plan.num_tokens
        for row in plan.rows:
            if row.num_tokens == 1:
                work += row.start * self.work.decode_attention
            else:
                chunk = self.work.attention(row.start, row.num_tokens)
                # Its keys and values are read at least once.
                work += max(chunk, row.start * self.work.decode_attention)
        sizes = self.decode_sizes if num_tokens == len(plan.rows) else self.sizes
        padded = next(size for size in sizes if size >= num_tokens)
        return self.step_s + self.token_s * (max(self.work.free_tokens, padded) + work)


def powers(first: int, last: int, factor: int = 2) -> tuple[int, ...]:
    """Return first, factor * first, ... up to last."""
    sizes = [first]
    while sizes[-1] < last:
        sizes.append(sizes[-1] * factor)
    return tuple(sizes)


# 40 million parameters in float32 on two cores: 8 ms to read the weights, 0.4 ms a token.
SMALL_ON_CPU = Device(
    name="60m, 2-core CPU",
    token_s=0.4e-3,
    step_s=0.5e-3,
    work=WorkModel(free_tokens=20, prefill_attention=1 / 1000, decode_attention=1 / 366),
    sizes=(32, 128, 512),
    decode_sizes=(1, 8, 32),
)
# Llama 3.1 8B in bfloat16: 15 GB at 4.3 TB/s, and 14 GFLOP a token at 75 % of the paper's rate.
LARGE_ON_GPU = Device(
    name="8B, H200",
    token_s=19e-6,
    step_s=0.1e-3,
    work=WorkModel(free_tokens=184, prefill_attention=1 / 24_000, decode_attention=1 / 620),
    sizes=powers(16, 8192),
    decode_sizes=powers(8, 256),
)


@dataclass(slots=True)
class Trace:
    """When a request arrived and when each of its tokens came."""

    name: str
    arrival_s: float
    num_prompt: int
    token_s: list[float] = field(default_factory=list[float])

    @property
    def ttft_s(self) -> float:
        """Time to the first token."""
        return self.token_s[0] - self.arrival_s

    def gaps(self, start_s: float = 0.0, stop_s: float = inf) -> list[float]:
        """Return the times between tokens that ended within [start_s, stop_s)."""
        pairs = zip(self.token_s, self.token_s[1:], strict=False)
        return [after - before for before, after in pairs if start_s <= after < stop_s]


@dataclass(frozen=True, slots=True)
class Run:
    """Results of all requests."""

    traces: dict[str, Trace]
    elapsed_s: float
    num_steps: int
    scheduler: Scheduler

    @property
    def output_tokens_per_s(self) -> float:
        """Tokens generated per second."""
        return sum(len(trace.token_s) for trace in self.traces.values()) / self.elapsed_s


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and when it comes."""

    at_s: float
    name: str
    prompt_ids: tuple[int, ...]
    num_output: int

    @property
    def request(self) -> Request:
        """The request, greedy and of exactly so many tokens."""
        params = SamplingParams(temperature=0, max_tokens=self.num_output, ignore_eos=True)
        return Request(id=self.name, prompt_ids=self.prompt_ids, params=params)


def simulate(scheduler: Scheduler, device: Device, arrivals: Iterable[Arrival]) -> Run:
    """Serve the arrivals by the engine's loop, with one step planned while another is computed."""
    coming = deque(sorted(arrivals, key=lambda arrival: arrival.at_s))
    traces = {a.name: Trace(a.name, a.at_s, len(a.prompt_ids)) for a in coming}
    in_flight: deque[tuple[StepPlan, float]] = deque()
    now_s = free_s = 0.0
    num_steps = 0
    while coming or in_flight or scheduler.has_unfinished:
        while coming and coming[0].at_s <= now_s:
            scheduler.add(coming.popleft().request)
        plan = scheduler.schedule()
        if plan is not None:
            free_s = max(now_s, free_s) + device.seconds(plan)
            in_flight.append((plan, free_s))
            num_steps += 1
        if len(in_flight) == 2 or (plan is None and in_flight):
            plan, done_s = in_flight.popleft()
            now_s = max(now_s, done_s)
            tokens = tuple((7,) if row.samples else () for row in plan.rows)
            for sequence, _, _ in scheduler.commit(plan, StepResult(token_ids=tokens)):
                traces[sequence.request.id].token_s.append(now_s)
        elif plan is None and coming:
            now_s = max(now_s, coming[0].at_s)
    return Run(traces, now_s, num_steps, scheduler)


def quantile(values: list[float], share: float) -> float:
    """Return the smallest value that this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
