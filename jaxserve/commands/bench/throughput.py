"""Measure the throughput of greedy requests of exact lengths, all sent at once, in this process."""

import argparse
import dataclasses
import json
from pathlib import Path

from jaxserve.commands.arguments import add_engine_arguments, model_of, say
from jaxserve.commands.bench.dataset import add_workload_arguments, numbers, workload_for
from jaxserve.config.flags import ENGINE_FLAGS, given
from jaxserve.errors import ConfigError

HELP = "tokens per second when all requests come at once"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's arguments."""
    add_engine_arguments(parser)
    add_workload_arguments(parser)
    group = parser.add_argument_group("measurement")
    group.add_argument(
        "--batch",
        type=numbers,
        metavar="N,N,...",
        help="measure with these numbers of requests at a time (default: --max-num-seqs)",
    )
    group.add_argument("--output-json", type=Path, metavar="FILE", help="write the results there")


def run(args: argparse.Namespace) -> int:
    """Print the throughput of each batch."""
    from jaxserve.bench.machine import describe_machine
    from jaxserve.bench.throughput import measure_throughput, run_jobs
    from jaxserve.offline.llm import LLM

    options = {"warm_up": "full"} | given(args, ENGINE_FLAGS)
    if args.batch is not None:
        options.setdefault("max_num_seqs", max(args.batch))
    llm = LLM(model_of(args), report=say, **options)
    batches = args.batch or [llm.plan.scheduler.max_num_seqs]
    if max(batches) > llm.plan.scheduler.max_num_seqs:
        raise ConfigError(
            f"batch must be at most max_num_seqs ({llm.plan.scheduler.max_num_seqs}),"
            f" got {max(batches)}"
        )
    workload = workload_for(llm, args)
    machine = describe_machine()
    print(f"{llm.plan.name} ({llm.plan.dtype}), {len(workload.jobs)} requests: {workload.name}")
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    run_jobs(llm, [workload.warm], batch=1)
    results = []
    for batch in batches:
        result = measure_throughput(llm, workload.jobs, batch=batch)
        say(f"batch {batch}: {result.elapsed_s:.2f} s")
        print(result.line())
        print(f"KV waste: {result.kv_waste:.2%} of the memory of pages in use", flush=True)
        results.append(result)
    print(f"Total num prompt tokens:  {results[0].num_prompt_tokens}")
    print(f"Total num output tokens:  {results[0].num_output_tokens}")
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
