"""Profile of an engine's steps: time by phase, compared with the roofline."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from statistics import fmean

import numpy as np

from jaxserve.bench.ceilings import Ceilings
from jaxserve.observability.timeline import PHASES, StepRecord

PERCENTILES = (50, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Percentiles of a duration over steps, in seconds, and its share of the total time."""

    p50_s: float
    p99_s: float
    total_s: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramProfile:
    """Statistics of the steps that ran one program.

    tokens, sequences: mean per step, without padding. padding: share of padding rows. flops,
    num_bytes: mean per step. roofline: time that the ceilings allow, divided by the actual time.
    """

    program: str
    steps: int
    tokens: float
    sequences: float
    padding: float
    device_p50_s: float
    device_p99_s: float
    flops: float
    num_bytes: float
    roofline: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Summary of a timeline; `StepRecord` defines the times.

    elapsed_s: busy time of the engine thread, to which shares refer.
    """

    steps: int
    elapsed_s: float
    tokens: int
    padding: float
    phases: dict[str, Spread]
    host: Spread
    device: Spread
    gap: Spread
    gap_max: Spread
    flops: float
    read_bytes: float
    written_bytes: float
    roofline: float
    programs: list[ProgramProfile]

    def lines(self) -> Iterator[str]:
        """Yield tables for people."""
        yield (
            f"{self.steps} steps in {self.elapsed_s:.2f} s: {self.tokens} tokens computed,"
            f" {self.tokens / self.elapsed_s:.1f} a second; {self.padding:.0%} of the rows were"
            " padding"
        )
        yield ""
        yield f"{'milliseconds a step':<22}{'p50':>10}{'p99':>10}{'share':>9}"
        named = [
            *self.phases.items(),
            ("host (without wait)", self.host),
            ("device", self.device),
            ("gap, at least", self.gap),
            ("gap, at most", self.gap_max),
        ]
        for name, spread in named:
            if name.startswith("host"):
                yield ""
            yield (
                f"{name:<22}{spread.p50_s * 1e3:>10.3f}{spread.p99_s * 1e3:>10.3f}"
                f"{spread.share:>9.1%}"
            )
        yield ""
        yield (
            f"A step computes {self.flops / 1e9:.3f} GFLOP, reads {self.read_bytes / 1e9:.3f} GB"
            f" and writes {self.written_bytes / 1e9:.3f} GB at least:"
            f" {self.roofline:.0%} of the roofline"
        )
        yield ""
        yield (
            f"{'program':<18}{'steps':>7}{'tokens':>9}{'seqs':>8}{'padding':>9}{'device ms':>11}"
            f"{'p99':>9}{'GFLOP':>10}{'GB':>9}{'roofline':>10}"
        )
        for program in self.programs:
            yield (
                f"{program.program:<18}{program.steps:>7}{program.tokens:>9.1f}"
                f"{program.sequences:>8.1f}{program.padding:>9.0%}"
                f"{program.device_p50_s * 1e3:>11.3f}{program.device_p99_s * 1e3:>9.3f}"
                f"{program.flops / 1e9:>10.3f}{program.num_bytes / 1e9:>9.3f}"
                f"{program.roofline:>10.0%}"
            )


def profile_of(records: Sequence[StepRecord], ceilings: Ceilings) -> Profile:
    """Sum up at least one record."""
    elapsed_s = sum(record.host_s + record.wait_s for record in records)

    def spread(seconds_of: Callable[[StepRecord], float]) -> Spread:
        seconds = [seconds_of(record) for record in records]
        p50_s, p99_s = map(float, np.percentile(seconds, PERCENTILES))
        total_s = sum(seconds)
        return Spread(p50_s=p50_s, p99_s=p99_s, total_s=total_s, share=total_s / elapsed_s)

    by_program: defaultdict[str, list[StepRecord]] = defaultdict(list)
    for record in records:
        by_program[record.program].append(record)
    programs = [
        _program_profile(program, by_program[program], ceilings)
        for program in sorted(by_program, key=lambda name: -_device_s(by_program[name]))
    ]
    return Profile(
        steps=len(records),
        elapsed_s=elapsed_s,
        tokens=sum(record.num_tokens for record in records),
        padding=_padding(records),
        phases={phase: spread(attrgetter(f"{phase}_s")) for phase in PHASES},
        host=spread(attrgetter("host_s")),
        device=spread(attrgetter("device_s")),
        gap=spread(attrgetter("gap_s")),
        gap_max=spread(attrgetter("gap_max_s")),
        flops=fmean(record.flops for record in records),
        read_bytes=fmean(record.read_bytes for record in records),
        written_bytes=fmean(record.written_bytes for record in records),
        roofline=_roofline(records, ceilings),
        programs=programs,
    )


def slowest(records: Sequence[StepRecord], count: int) -> Iterator[str]:
    """Yield a table of the slowest steps on host and device, in step order."""
    longest = sorted(records, key=_latency_s, reverse=True)[:count]
    first_s = min((record.start_s for record in records), default=0.0)
    yield (
        f"{'slowest steps, at s':<20}{'program':<18}{'tokens':>8}{'seqs':>7}{'device ms':>11}"
        f"{'gap ms':>9}{'host ms':>9}  longest host phase"
    )
    for record in sorted(longest, key=lambda record: record.start_s):
        phase = max(
            (phase for phase in PHASES if phase != "wait"),
            key=lambda phase: float(getattr(record, f"{phase}_s")),
        )
        yield (
            f"{record.start_s - first_s:<20.3f}{record.program:<18}{record.num_tokens:>8}"
            f"{record.num_sequences:>7}{record.device_s * 1e3:>11.3f}{record.gap_s * 1e3:>9.3f}"
            f"{record.host_s * 1e3:>9.3f}  {phase} {getattr(record, f'{phase}_s') * 1e3:.3f}"
        )


def _program_profile(
    program: str, records: Sequence[StepRecord], ceilings: Ceilings
) -> ProgramProfile:
    seconds = np.percentile([record.device_s for record in records], PERCENTILES)
    return ProgramProfile(
        program=program,
        steps=len(records),
        tokens=fmean(record.num_tokens for record in records),
        sequences=fmean(record.num_sequences for record in records),
        padding=_padding(records),
        device_p50_s=float(seconds[0]),
        device_p99_s=float(seconds[1]),
        flops=fmean(record.flops for record in records),
        num_bytes=fmean(record.read_bytes + record.written_bytes for record in records),
        roofline=_roofline(records, ceilings),
    )


def _padding(records: Sequence[StepRecord]) -> float:
    padded = sum(record.padded_tokens for record in records)
    return 1 - sum(record.num_tokens for record in records) / padded


def _device_s(records: Sequence[StepRecord]) -> float:
    return sum(record.device_s for record in records)


def _latency_s(record: StepRecord) -> float:
    return record.device_s + record.host_s


def _roofline(records: Sequence[StepRecord], ceilings: Ceilings) -> float:
    """Return the time that the ceilings allow for these steps, divided by the actual time."""
    by_memory_s = [
        (record.read_bytes + record.written_bytes) / ceilings.bytes_per_s for record in records
    ]
    by_compute_s = [record.flops / ceilings.flops_per_s for record in records]
    least_s = sum(map(max, by_memory_s, by_compute_s))
    return least_s / max(_device_s(records), 1e-9)
