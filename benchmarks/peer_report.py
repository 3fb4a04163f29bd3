"""Results of peers.py: ratios within rounds, medians, agreement of tokens, and tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

# Above this many cores used by others, a sample is doubtful (the peers' own rule).
QUIET_CORES = 0.1


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of a workload: its key in a sample, its heading, and which way is better."""

    workload: str
    key: str
    heading: str
    more_is_better: bool


METRICS = (
    Metric("W1", "out_tps", "W1 tok/s", True),
    Metric("W2", "ttft_ms", "W2 TTFT ms", False),
    Metric("W2", "tpot_ms", "W2 TPOT ms", False),
    Metric("W3", "out_tps", "W3 tok/s", True),
    Metric("W3", "ttft_p50", "W3 TTFT p50 ms", False),
    Metric("W3", "itl_p95", "W3 ITL p95 ms", False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A peer's figure, and how jaxserve compares: above 1 jaxserve is better."""

    metric: Metric
    peer: str
    ours: float
    theirs: float
    ratios: tuple[float, ...]
    other_cores: float

    @property
    def ratio(self) -> float:
        """The median of the rounds' own ratios."""
        return median(self.ratios)


def rows(samples: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Compare every peer with jaxserve, round by round."""
    found = []
    for metric in METRICS:
        by_round = {
            (sample["engine"], sample["peer"], sample["round"]): sample
            for sample in samples
            if sample["wl"] == metric.workload and metric.key in sample
        }
        ours = {index: each for (name, _, index), each in by_round.items() if name == "jaxserve"}
        peers = dict.fromkeys(peer for name, peer, _ in by_round if name != "jaxserve")
        for peer in peers:
            pairs = [
                (ours[index], sample)
                for (_, name, index), sample in by_round.items()
                if name == peer and index in ours
            ]
            if pairs:
                found.append(_row(metric, peer, pairs))
    return found


def _row(metric: Metric, peer: str, pairs: Sequence[tuple[Any, Any]]) -> Row:
    key = metric.key
    ratios = (
        (ours[key] / theirs[key]) if metric.more_is_better else (theirs[key] / ours[key])
        for ours, theirs in pairs
    )
    return Row(
        metric=metric,
        peer=peer,
        ours=median(ours[key] for ours, _ in pairs),
        theirs=median(theirs[key] for _, theirs in pairs),
        ratios=tuple(ratios),
        other_cores=max(max(a["other_cores"], b["other_cores"]) for a, b in pairs),
    )


def table(compared: Sequence[Row]) -> str:
    """Return the comparison as Markdown."""
    names = ("figure", "peer", "jaxserve", "peer's", "ratio", "each round", "other cores")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in compared:
        cells = (
            row.metric.heading,
            row.peer,
            f"{row.ours:.1f}",
            f"{row.theirs:.1f}",
            f"**{row.ratio:.2f}**",
            ", ".join(f"{ratio:.2f}" for ratio in row.ratios),
            f"{row.other_cores:.2f}" + (" (busy)" if row.other_cores > QUIET_CORES else ""),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Agreement of an engine's greedy tokens with the reference.

    first: share of requests with the same first token. whole: share with the same tokens. common:
    mean share of an answer before the first difference.
    """

    engine: str
    num_requests: int
    first: float
    common: float
    whole: float


def agreement(
    engine: str, tokens: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]
) -> Agreement:
    """Compare an engine's tokens with the reference's."""
    count = len(reference)
    pairs = list(zip(tokens, reference, strict=True))
    return Agreement(
        engine=engine,
        num_requests=count,
        first=sum(list(a[:1]) == list(b[:1]) for a, b in pairs) / count,
        common=sum(common_prefix(a, b) / len(b) for a, b in pairs) / count,
        whole=sum(list(a) == list(b) for a, b in pairs) / count,
    )


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two texts begin with in common."""
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))


def agreement_table(found: Sequence[Agreement]) -> str:
    """Return the agreements as Markdown."""
    names = ("engine", "first token", "tokens before a difference", "whole answer")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for each in found:
        shares = (each.first, each.common, each.whole)
        lines.append(f"| {each.engine} | {' | '.join(f'{share:.0%}' for share in shares)} |")
    return "\n".join(lines)


def wrong_count(sample: Mapping[str, Any], *, wanted: int) -> str | None:
    """Return what is wrong with a sample's tokens: a peer must not win by leaving some out."""
    if sample["wl"] == "W2":
        return None
    got = sample.get("ntok", sample.get("out"))
    return None if got is None or got == wanted else f"gave {got} of {wanted} tokens"
