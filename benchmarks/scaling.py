"""Measure how jaxserve scales: three curves with data and plots.

    python -m benchmarks.scaling MODEL --parts throughput context host --results benchmarks/results

- throughput: output tokens per second, including prompts, and the median step time, for 1 to 256
  concurrent requests
- context: time of a decode step for 128 to 8192 tokens of context (step.py with random weights;
  takes minutes on two cores, mostly for eight sequences of the longest context)
- host: host time of a step for 1 to 512 running sequences, without a device (host.py)

MODEL is a folder and may be run beyond its trained context. The script fails if anything is
compiled during a measurement.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.long_context import with_context
from jaxserve.bench.datasets import DatasetOptions, random_workload
from jaxserve.bench.environment import LoadMeter, about_line, describe_host
from jaxserve.bench.plots import Axes, draw, require_pyplot
from jaxserve.bench.throughput import measure_throughput, run_jobs, vocabulary_of
from jaxserve.offline.llm import LLM

HERE = Path(__file__).parent
PARTS = ("throughput", "context", "host")
HOST_TARGET_US = 1000.0  # at 256 sequences
HOST_CONTEXT = 4096  # tokens, which host.py's sequences fit in


def throughput(model: Path, concurrencies: Sequence[int], *, flags: dict[str, Any]) -> Any:
    """Return tokens per second at each concurrency; a quick one has a few turns of requests."""
    options = {"max_num_seqs": max(concurrencies), "max_model_len": 512} | flags
    llm = LLM(str(model), report=say, enable_prefix_caching=False, warm_up="full", **options)
    points = []
    for concurrency in concurrencies:
        dataset = DatasetOptions(
            num_prompts=max(concurrency, min(4 * concurrency, 16)),
            seed=concurrency,
            random_input_len=64,
            random_output_len=64,
        )
        workload = random_workload(dataset, vocabulary_of(llm))
        run_jobs(llm, [workload.warm], batch=1)
        llm.timeline.recent.clear()
        with LoadMeter() as load:
            result = measure_throughput(llm, workload.jobs, batch=concurrency)
        decodes = [
            record.device_s
            for record in llm.timeline.recent
            if record.num_tokens == record.num_sequences == concurrency
        ]
        points.append(
            {
                "concurrency": concurrency,
                "output_tokens_per_s": result.output_tokens_per_s,
                "tokens_per_s": result.tokens_per_s,
                "decode_step_ms": median(decodes) * 1e3 if decodes else None,
                "other_cores": load.other_cores,
            }
        )
        say(f"{concurrency} at once: {result.line()}")
    assert llm.num_compilations == 0, "a program was compiled while the clock ran"
    return {"dtype": llm.plan.dtype, "compilations": llm.num_compilations, "points": points}


def context(model: Path, contexts: Sequence[int], batches: Sequence[int]) -> Any:
    """Return what step.py measures."""
    with with_context(model, max(contexts) + 3 * 64) as folder:
        words = ["--batch", *map(str, batches), "--context", *map(str, contexts), "--steps", "16"]
        return run_script("step.py", [str(folder), *words])


def host(model: Path, sequences: Sequence[int]) -> Any:
    """Return what host.py measures."""
    with with_context(model, HOST_CONTEXT) as folder:
        return run_script("host.py", ["--model", str(folder), "--sequences", *map(str, sequences)])


def run_script(name: str, arguments: Sequence[str]) -> Any:
    """Run a script of this folder in a process of its own, and return what it writes."""
    with TemporaryDirectory() as folder:
        target = Path(folder) / "result.json"
        command = [sys.executable, str(HERE / name), *arguments, "--json", str(target)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return json.loads(target.read_text("utf-8"))


def draw_throughput(record: Any, path: Path, about: str) -> None:
    """Draw tokens per second and step times against concurrency."""
    points = record["points"]
    diagrams = [
        Axes(
            title="Throughput",
            x_label="requests at once",
            y_label="output tokens per second",
            lines={"jaxserve": [(p["concurrency"], p["output_tokens_per_s"]) for p in points]},
            log_x=True,
        ),
        Axes(
            title="Time of a decoding step",
            x_label="requests at once",
            y_label="step, median (ms)",
            lines={
                "jaxserve": [
                    (p["concurrency"], p["decode_step_ms"]) for p in points if p["decode_step_ms"]
                ]
            },
            log_x=True,
        ),
    ]
    draw(path, diagrams, title="Throughput against concurrency", about=about)


def draw_context(record: Any, path: Path, about: str) -> None:
    """Draw step times against context, one line for each batch."""
    decodes = [each for each in record["measured"] if each["kind"] == "decode"]
    batches = sorted({each["batch"] for each in decodes})
    diagram = Axes(
        title="Time of a decoding step",
        x_label="context of each sequence (tokens)",
        y_label="step (ms)",
        lines={
            f"{batch} sequence{'s' if batch > 1 else ''}": [
                (each["context"], each["step_ms"]) for each in decodes if each["batch"] == batch
            ]
            for batch in batches
        },
        log_x=True,
    )
    draw(path, [diagram], title="Step time against context", about=about)


def draw_host(record: Any, path: Path, about: str) -> None:
    """Draw what a step costs the host against running sequences."""
    costs = record["results"]
    diagram = Axes(
        title="A step without the wait for the device",
        x_label="running sequences",
        y_label="host time per step (µs)",
        lines={
            name: [(cost["sequences"], cost[f"{name}_us"]["host"]) for cost in costs]
            for name in ("p50", "p99")
        },
        log_x=True,
        log_y=True,
        level=(HOST_TARGET_US, "1 ms"),
    )
    draw(path, [diagram], title="Host cost against running sequences", about=about)


def say(line: str) -> None:
    """Tell how far it is."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Measure the parts that are asked for, and write a JSON file and a plot of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    powers = [1 << power for power in range(14)]
    for name, default in (
        ("--concurrencies", powers[:9]),
        ("--contexts", powers[7:14]),
        ("--batches", [1, 8]),
        ("--sequences", powers[:10]),
    ):
        parser.add_argument(name, type=int, nargs="+", default=default, metavar="N")
    parser.add_argument("--dtype", default="auto", help="for throughput (default: auto)")
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="FOLDER")
    args = parser.parse_args()
    require_pyplot()
    args.results.mkdir(parents=True, exist_ok=True)
    measures = {
        "throughput": lambda: throughput(
            args.model, args.concurrencies, flags={"dtype": args.dtype}
        ),
        "context": lambda: context(args.model, args.contexts, args.batches),
        "host": lambda: host(args.model, args.sequences),
    }
    draws = {"throughput": draw_throughput, "context": draw_context, "host": draw_host}
    for part in args.parts:
        before = os.getloadavg()[0]
        record = {
            "date": datetime.now(UTC).date().isoformat(),
            "model": args.model.resolve().name,
            "machine": describe_host(),
            "load_average_before": before,
            **measures[part](),
        }
        target = args.results / f"{record['date']}-scaling-{part}"
        text = json.dumps(record, indent=2) + "\n"
        target.with_suffix(".json").write_text(text, encoding="utf-8")
        draws[part](record, target.with_suffix(".svg"), about_line(record["model"]))
        say(f"wrote {target}.json and .svg")


if __name__ == "__main__":
    main()
