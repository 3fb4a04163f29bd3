r"""Compare jaxserve with other engines on a CPU, with one workload in alternating runs.

    python -m benchmarks.peers --peers-dir RUNNERS --peers-home HOME --model llama-60m \
        --python hf=PATH --python ov=PATH --python vllm=PATH --python ct2=PATH --rounds 3

Workloads: W1, 64 requests at once in process; W2, one request, its first token and the others; W3,
32 streaming HTTP clients. In each round every engine runs each workload once in its own process, in
rotating order. The result is the ratio of jaxserve's figure to a peer's in the same round; above 1
jaxserve is better. The table shows the median, every round, and the cores used by other processes.
Greedy tokens are first compared with transformers' in float32. A peer that is missing or fails is
listed with the reason. Flags after `--` are passed to jaxserve.
"""

import argparse
import json
import os
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import peer_report
from benchmarks.peer_engines import (
    JAXSERVE,
    PEERS,
    PRECISIONS,
    WORKLOADS,
    Engine,
)
from benchmarks.peer_setup import PeerError, Setup
from jaxserve.bench.environment import describe_host

HERE = Path(__file__).parent
NUM_AGREEING = 8
AGREEING_TOKENS = 16


class Comparison:
    """Samples and failures of a run."""

    def __init__(self, setup: Setup, precision: str, workloads: list[str]) -> None:
        self._setup = setup
        self._precision = precision
        self._workloads = workloads
        self.samples: list[dict[str, Any]] = []
        self.failures: dict[str, str] = {}
        workload = json.loads((setup.home / "workload.json").read_text("utf-8"))
        self._num_tokens = sum(request["out"] for request in workload["w1"][: setup.num_prompts])

    def run(self, engine: Engine, round_index: int) -> None:
        """Let an engine do all it can once."""
        for reason_of in (self._precision, *self._workloads):
            if reason_of in engine.cannot:
                self.failures[f"{engine.name} {reason_of}"] = engine.cannot[reason_of]
        if self._precision in engine.cannot:
            return
        say(f"round {round_index}: {engine.name}")
        try:
            for result in engine.run(self._setup, self._precision, self._workloads):
                self._take(engine, result, round_index)
        except PeerError as error:
            self._fail(f"{engine.name}, round {round_index}", str(error))

    def _take(self, engine: Engine, result: dict[str, Any], round_index: int) -> None:
        """Keep a sample, unless tokens are missing from it."""
        wrong = peer_report.wrong_count(result, wanted=self._num_tokens)
        if wrong is not None:
            self._fail(f"{result['peer']} {result['wl']}, round {round_index}", wrong)
        else:
            self.samples.append({**result, "engine": engine.name, "round": round_index})

    def agreements(self, engines: list[Engine]) -> list[peer_report.Agreement]:
        """Compare the greedy tokens of engines with those of transformers in float32."""
        counts = {"num_requests": NUM_AGREEING, "num_tokens": AGREEING_TOKENS}
        found = []
        try:
            reference = PEERS[0].tokens(self._setup, "f32", **counts)
        except PeerError as error:
            self._fail("agreement", f"transformers is the reference: {error}")
            return []
        for engine in engines:
            if self._precision in engine.cannot or not engine.is_compared:
                continue
            say(f"tokens of {engine.name}")
            try:
                tokens = engine.tokens(self._setup, self._precision, **counts)
            except PeerError as error:
                self._fail(f"{engine.name}, agreement", str(error))
                continue
            found.append(peer_report.agreement(engine.name, tokens, reference))
        return found

    def _fail(self, what: str, reason: str) -> None:
        say(f"FAILED: {what}: {reason}")
        self.failures[what] = reason


def report(
    comparison: Comparison, found: list[peer_report.Agreement], about: dict[str, Any]
) -> str:
    """Return the Markdown file of a run."""
    failures = [f"- {what}: {reason}" for what, reason in comparison.failures.items()]
    facts = [f"- {name}: {value}" for name, value in about.items()]
    agreements = [
        "## Agreement with transformers in float32",
        peer_report.agreement_table(found),
        f"{NUM_AGREEING} requests of W1, {AGREEING_TOKENS} greedy tokens of each.",
    ]
    if not found:
        agreements = ["Tokens were not compared."]
    lines = [
        f"# jaxserve and its peers: {about['model']}, {about['precision']}, {about['date']}",
        peer_report.table(peer_report.rows(comparison.samples)),
        "Ratios: above 1, jaxserve is better; the median of the rounds' own ratios.",
        *agreements,
        "## Not measured",
        "\n".join(failures) or "Nothing was left out.",
        "## Made on",
        "\n".join(facts),
    ]
    return "\n\n".join(lines) + "\n"


def say(line: str) -> None:
    """Tell how far it is."""
    print(line, file=sys.stderr, flush=True)


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """Read the command line; what follows -- are flags of jaxserve."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers-dir", type=Path, required=True, metavar="FOLDER")
    home = os.environ.get("PEERS_HOME")
    parser.add_argument(
        "--peers-home",
        type=Path,
        default=home and Path(home),
        required=home is None,
        metavar="FOLDER",
        help="with models/ and workload.json (default: PEERS_HOME)",
    )
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--model", default="llama-60m", metavar="NAME")
    parser.add_argument("--precision", choices=PRECISIONS, default="f32")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), metavar="W1,W2,W3")
    parser.add_argument("--peers", default=",".join(peer.name for peer in PEERS), metavar="NAMES")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--num-prompts", type=int, default=64, metavar="N", help="of W1 and W3")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    parser.add_argument("--timeout", type=float, default=1800, metavar="S", help="for each program")
    parser.add_argument("--no-agreement", action="store_true")
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="FOLDER")
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    return parser.parse_args(words[:end]), words[end + 1 :]


def main() -> None:
    """Measure, print the tables, write the files."""
    args, flags = arguments()
    setup = Setup(
        peers_dir=args.peers_dir.resolve(),
        home=args.peers_home.resolve(),
        pythons=dict(pair.split("=", 1) for pair in args.python),
        model=args.model,
        num_prompts=args.num_prompts,
        threads=args.threads,
        timeout_s=args.timeout,
        flags=flags,
    )
    chosen = args.peers.split(",")
    engines = [JAXSERVE, *(peer for peer in PEERS if peer.name in chosen)]
    comparison = Comparison(setup, args.precision, args.workloads.split(","))
    about: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "model": args.model,
        "precision": args.precision,
        **describe_host(),
        "threads": args.threads,
        "jaxserve flags": " ".join(flags) or "none",
        "load average before": f"{os.getloadavg()[0]:.2f}",
    }
    found = [] if args.no_agreement else comparison.agreements(engines)
    for round_index in range(args.rounds):
        turn = round_index % len(engines)
        for engine in engines[turn:] + engines[:turn]:
            comparison.run(engine, round_index)
    about["peers"] = ", ".join(dict.fromkeys(sample["peer"] for sample in comparison.samples))
    text = report(comparison, found, about)
    print(text)
    args.results.mkdir(parents=True, exist_ok=True)
    name = f"{about['date']}-peers-{args.model}-{args.precision}"
    (args.results / f"{name}.md").write_text(text, encoding="utf-8")
    record = {
        "about": about,
        "samples": comparison.samples,
        "agreement": [asdict(each) for each in found],
        "not_measured": comparison.failures,
    }
    text = json.dumps(record, indent=2) + "\n"
    (args.results / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
