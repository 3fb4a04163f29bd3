"""Compare jaxserve's throughput with transformers' `generate`, in alternating runs.

    python benchmarks/throughput.py MODEL --workload workload.json --torch-python /path/to/python

Both load the same model in float32 and alternate: for each round and batch they run one after the
other, taking turns to go first. The result is the ratio of such a pair, because other load affects
both. The table shows the median of the pairs.

MODEL is a folder in Hugging Face's layout. The workload has the format of `jaxserve bench
throughput --workload`. --torch-python is an interpreter with torch and transformers, which
jaxserve's environment does not have.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from jaxserve.bench.machine import describe_machine
from jaxserve.bench.throughput import run_jobs
from jaxserve.bench.workload import Workload, read_workload
from jaxserve.offline.llm import LLM

HERE = Path(__file__).parent
STOP_TIMEOUT_S = 30.0


class TransformersWorker:
    """transformers in its own process; see transformers_worker.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.versions = self._read()

    def run(self, batch: int) -> tuple[float, list[list[int]]]:
        """Return the seconds the whole workload took, and the tokens of each of its jobs."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{batch}\n")
        self._process.stdin.flush()
        answer = self._read()
        return answer["elapsed_s"], answer["tokens"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit("the transformers process has ended; its error is above")
        fields: dict[str, Any] = json.loads(line)
        return fields


@contextmanager
def transformers_worker(
    python: str, model: str, workload: Path, *, num_prompts: int | None
) -> Iterator[TransformersWorker]:
    """Run the worker, and end it with the block."""
    # Isolated: the worker's own folder has a kernels.py, and transformers looks for a package.
    command = [python, "-I", str(HERE / "transformers_worker.py"), model, str(workload)]
    if num_prompts is not None:
        command += ["--num-prompts", str(num_prompts)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield TransformersWorker(process)
            assert process.stdin is not None
            process.stdin.close()
            process.wait(STOP_TIMEOUT_S)
        finally:
            process.kill()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One turn of each: seconds for the whole workload, and how far the tokens agree."""

    batch: int
    round_index: int
    jaxserve_s: float
    transformers_s: float
    num_same: int

    @property
    def ratio(self) -> float:
        """How many times as fast jaxserve was."""
        return self.transformers_s / self.jaxserve_s


def run_pair(
    llm: LLM, worker: TransformersWorker, workload: Workload, *, batch: int, round_index: int
) -> Pair:
    """Let both do the whole workload, jaxserve first in every other round."""

    def run_jaxserve() -> tuple[float, list[list[int]]]:
        llm.reset_prefix_cache()
        start_s = time.perf_counter()
        tokens = run_jobs(llm, workload.jobs, batch=batch)
        return time.perf_counter() - start_s, tokens

    if round_index % 2 == 0:
        ours, theirs = run_jaxserve(), worker.run(batch)
    else:
        theirs, ours = worker.run(batch), run_jaxserve()
    return Pair(
        batch=batch,
        round_index=round_index,
        jaxserve_s=ours[0],
        transformers_s=theirs[0],
        num_same=sum(a == b for a, b in zip(ours[1], theirs[1], strict=True)),
    )


def table(pairs: list[Pair], workload: Workload) -> str:
    """Return the result as a Markdown table."""
    num_tokens = sum(job.num_output_tokens for job in workload.jobs)
    names = (
        "batch",
        "jaxserve tok/s",
        "transformers tok/s",
        "ratio",
        "of each round",
        "same tokens",
    )
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for batch in dict.fromkeys(pair.batch for pair in pairs):
        mine = [pair for pair in pairs if pair.batch == batch]
        ratios = [pair.ratio for pair in mine]
        cells = (
            str(batch),
            f"{num_tokens / median(pair.jaxserve_s for pair in mine):.1f}",
            f"{num_tokens / median(pair.transformers_s for pair in mine):.1f}",
            f"{median(ratios):.2f}",
            ", ".join(f"{ratio:.2f}" for ratio in ratios),
            f"{min(pair.num_same for pair in mine)} of {len(workload.jobs)}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report(pairs: list[Pair], workload: Workload, about: dict[str, object]) -> str:
    """Return the Markdown file of a run."""
    num_read = sum(len(job.prompt_ids) for job in workload.jobs)
    num_written = sum(job.num_output_tokens for job in workload.jobs)
    facts = "\n".join(f"- {name}: {value}" for name, value in about.items())
    return f"""# Throughput of jaxserve and transformers, {about["date"]}

{table(pairs, workload)}

{len(workload.jobs)} requests ({workload.name}), {num_read} prompt tokens, {num_written} output
tokens, greedy, to exact lengths. jaxserve: all at once, at most `batch` running, the prefix cache
empty. transformers: static batches, sorted by length of answer. tok/s: output tokens per second,
the median of the rounds. ratio: the median of the rounds' own ratios. same tokens: requests in
which both chose every token alike, in the worst round.

{facts}
"""


def main() -> None:
    """Measure, print the table, write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--workload", type=Path, required=True, metavar="FILE")
    parser.add_argument("--torch-python", required=True, metavar="FILE")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--num-prompts", type=int, metavar="N", help="of the workload (all)")
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="FOLDER")
    args = parser.parse_args()

    workload = read_workload(args.workload).first(args.num_prompts)
    load = os.getloadavg()[0]
    options = {"dtype": "float32", "max_num_seqs": max(args.batch), "warm_up": "full"}
    llm = LLM(args.model, report=print, **options)
    run_jobs(llm, [workload.warm], batch=1)
    with transformers_worker(
        args.torch_python, args.model, args.workload, num_prompts=args.num_prompts
    ) as worker:
        about: dict[str, object] = {
            "date": datetime.now(UTC).date().isoformat(),
            "model": f"{Path(args.model).name}, float32",
            **describe_machine(),
            **worker.versions,
            "load average before": f"{load:.2f}",
        }
        pairs = []
        for round_index in range(args.rounds):
            for batch in args.batch:
                pair = run_pair(llm, worker, workload, batch=batch, round_index=round_index)
                print(f"round {round_index}, batch {batch}: {pair.ratio:.2f}", flush=True)
                pairs.append(pair)
    text = report(pairs, workload, about)
    print(text)
    args.results.mkdir(parents=True, exist_ok=True)
    target = args.results / f"{about['date']}-throughput-vs-transformers"
    target.with_suffix(".md").write_text(text, encoding="utf-8")
    record = {"about": about, "pairs": [{**asdict(pair), "ratio": pair.ratio} for pair in pairs]}
    target.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
