"""`jaxserve bench`: measure an engine."""

import argparse
import dataclasses
import json
from pathlib import Path

from jaxserve.commands.arguments import add_engine_arguments, model_of, say
from jaxserve.errors import ConfigError
from jaxserve.flags import ENGINE_FLAGS, given

HELP = "measure how fast a model is served"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmarks, each with its arguments."""
    benchmarks = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    throughput = benchmarks.add_parser(
        "throughput",
        help="tokens per second when all requests come at once",
        description="Measure throughput: all requests at once, greedy, to exact lengths.",
    )
    add_engine_arguments(throughput)
    group = throughput.add_argument_group("workload")
    group.add_argument("--workload", type=Path, metavar="FILE", help="JSON file of token ids")
    group.add_argument(
        "--dataset-name",
        "--dataset",
        choices=("random",),
        default="random",
        help="what to run without a file: random tokens (default)",
    )
    for name, default, text in (
        ("--input-len", 128, "tokens of each random prompt"),
        ("--output-len", 128, "tokens generated for each"),
    ):
        group.add_argument(
            name, type=int, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    group.add_argument(
        "--num-prompts", type=int, metavar="N", help="how many (default: 64, or the whole file)"
    )
    group.add_argument(
        "--batch",
        type=_batches,
        metavar="N,N,...",
        help="measure with these numbers of requests at a time (default: --max-num-seqs)",
    )
    group.add_argument("--output-json", type=Path, metavar="FILE", help="write the results there")
    throughput.set_defaults(benchmark=run_throughput)


def run(args: argparse.Namespace) -> int:
    """Run a benchmark."""
    status: int = args.benchmark(args)
    return status


def run_throughput(args: argparse.Namespace) -> int:
    """Print throughput, once for each batch."""
    from jaxserve.bench.machine import describe_machine
    from jaxserve.bench.throughput import measure_throughput, run_jobs
    from jaxserve.bench.workload import random_workload, read_workload
    from jaxserve.llm import LLM

    workload = None if args.workload is None else read_workload(args.workload)
    options = given(args, ENGINE_FLAGS)
    if args.batch is not None:
        options.setdefault("max_num_seqs", max(args.batch))
    llm = LLM(model_of(args), report=say, **options)
    batches = args.batch or [llm.plan.scheduler.max_num_seqs]
    if max(batches) > llm.plan.scheduler.max_num_seqs:
        raise ConfigError(
            f"batch must be at most max_num_seqs ({llm.plan.scheduler.max_num_seqs}),"
            f" got {max(batches)}"
        )
    if workload is None:
        workload = random_workload(
            num_prompts=64 if args.num_prompts is None else args.num_prompts,
            input_len=args.input_len,
            output_len=args.output_len,
            vocab_size=llm.plan.model.vocab_size,
            seed=llm.plan.options.seed,
        )
    workload = workload.first(args.num_prompts)
    machine = describe_machine()
    print(f"{llm.plan.name} ({llm.plan.dtype}), {len(workload.jobs)} requests: {workload.name}")
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    run_jobs(llm, [workload.warm], batch=1)
    results = []
    for batch in batches:
        result = measure_throughput(llm, workload.jobs, batch=batch)
        say(f"batch {batch}: {result.elapsed_s:.2f} s")
        print(result.line(), flush=True)
        results.append(result)
    if args.output_json is not None:
        record = {
            "model": llm.plan.name,
            "dtype": llm.plan.dtype,
            "workload": workload.name,
            "machine": machine,
            "results": [
                {
                    **dataclasses.asdict(result),
                    "requests_per_second": result.requests_per_s,
                    "tokens_per_second": result.tokens_per_s,
                    "output_tokens_per_second": result.output_tokens_per_s,
                }
                for result in results
            ],
        }
        args.output_json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


def _batches(text: str) -> list[int]:
    """Read numbers with commas between them; ValueError is argparse's to report."""
    batches = [int(part) for part in text.split(",")]
    if min(batches) < 1:
        raise ValueError
    return batches
