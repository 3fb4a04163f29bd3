"""`jaxserve profile`: print the time of each phase of a step on host and device."""

import argparse
import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path

from jaxserve.commands.arguments import add_engine_arguments, model_of, say
from jaxserve.commands.bench.dataset import add_workload_arguments, workload_for
from jaxserve.config.flags import ENGINE_FLAGS, given

HELP = "profile the steps of an engine by phase"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_engine_arguments(parser)
    add_workload_arguments(parser)
    group = parser.add_argument_group("measurement")
    group.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="maximum number of concurrent requests (default: --max-num-seqs)",
    )
    group = parser.add_argument_group("output")
    group.add_argument(
        "--slowest",
        type=int,
        default=5,
        metavar="N",
        help="number of slowest steps to list (default: %(default)s)",
    )
    group.add_argument(
        "--output-json", type=Path, metavar="FILE", help="write all data to this file"
    )
    group.add_argument(
        "--trace",
        type=Path,
        metavar="DIR",
        help="write a trace for XProf or Perfetto, and list the longest operations",
    )


def run(args: argparse.Namespace) -> int:
    """Run the workload once and print its profile."""
    from jaxserve.bench.ceilings import measure_ceilings
    from jaxserve.bench.device_trace import read_trace, traced
    from jaxserve.bench.machine import describe_machine
    from jaxserve.bench.profile import profile_of, slowest
    from jaxserve.bench.throughput import run_jobs
    from jaxserve.offline.llm import LLM

    options = {"warm_up": "full"} | given(args, ENGINE_FLAGS)
    if args.batch_size is not None:
        options.setdefault("max_num_seqs", args.batch_size)
    llm = LLM(model_of(args), report=say, **options)
    batch = min(args.batch_size or 1 << 30, llm.plan.scheduler.max_num_seqs)
    workload = workload_for(llm, args)
    run_jobs(llm, [workload.warm], batch=1)
    llm.reset_prefix_cache()
    llm.timeline.recent.clear()
    with nullcontext() if args.trace is None else traced(args.trace):
        run_jobs(llm, workload.jobs, batch=batch)
    records = list(llm.timeline.recent)
    plan, machine = llm.plan, describe_machine()
    ceilings = measure_ceilings(quantization=plan.options.quantization, packed=plan.linear.packed)

    print(f"{plan.name} ({plan.dtype})")
    print(f"attention: {plan.context.attention.choice}; matmul: {plan.linear.choice}")
    print(f"{len(workload.jobs)} requests, at most {batch} at a time: {workload.name}")
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"measured ceilings: {ceilings.line()}")
    print()
    profile = profile_of(records, ceilings)
    for line in profile.lines():
        print(line)
    print()
    for line in slowest(records, args.slowest):
        print(line)
    devices = [] if args.trace is None else read_trace(args.trace)
    for device in devices:
        print()
        for line in device.lines(20):
            print(line)
    if args.output_json is not None:
        record = {
            "model": plan.name,
            "dtype": plan.dtype,
            "attention": str(plan.context.attention.choice),
            "linear": str(plan.linear.choice),
            "workload": workload.name,
            "batch": batch,
            "machine": machine,
            "ceilings": dataclasses.asdict(ceilings),
            "profile": dataclasses.asdict(profile),
            "steps": [
                {field: getattr(step, field) for field in step.__struct_fields__}
                for step in records
            ],
            "devices": [dataclasses.asdict(device) for device in devices],
        }
        args.output_json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0
