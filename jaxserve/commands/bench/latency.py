"""Measure the latency of a single batch of requests, in this process."""

import argparse
import json
from pathlib import Path

from jaxserve.commands.arguments import add_engine_arguments, model_of, say
from jaxserve.config.flags import ENGINE_FLAGS, given
from jaxserve.errors import ConfigError

HELP = "seconds that one batch takes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's arguments."""
    add_engine_arguments(parser)
    group = parser.add_argument_group("batch")
    for name, default, text in (
        ("--input-len", 32, "tokens of each prompt"),
        ("--output-len", 128, "tokens generated for each"),
        ("--batch-size", 8, "requests at once"),
        ("--num-iters-warmup", 10, "batches before the clock starts"),
        ("--num-iters", 30, "batches measured"),
    ):
        group.add_argument(
            name, type=int, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    group.add_argument("--output-json", type=Path, metavar="FILE", help="write the results there")


def run(args: argparse.Namespace) -> int:
    """Print the average and percentiles."""
    from jaxserve.bench.latency import measure_latency
    from jaxserve.bench.machine import describe_machine
    from jaxserve.offline.llm import LLM

    for name in ("input_len", "output_len", "batch_size", "num_iters"):
        if getattr(args, name) < 1:
            raise ConfigError(f"{name} must be at least 1, got {getattr(args, name)}")
    options = {
        "enable_prefix_caching": False,
        "max_num_seqs": args.batch_size,
        "warm_up": "full",
    } | given(args, ENGINE_FLAGS)
    llm = LLM(model_of(args), report=say, **options)
    machine = describe_machine()
    print(f"{llm.plan.name} ({llm.plan.dtype}), {args.batch_size} requests at once,")
    print(f"{args.input_len} tokens in, {args.output_len} out")
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    latency = measure_latency(
        llm,
        input_len=args.input_len,
        output_len=args.output_len,
        batch_size=args.batch_size,
        num_warmup=args.num_iters_warmup,
        num_iters=args.num_iters,
    )
    print(latency.report())
    if args.output_json is not None:
        record = {
            "model_id": llm.plan.name,
            **latency.fields(),
            "dtype": llm.plan.dtype,
            "input_len": args.input_len,
            "output_len": args.output_len,
            "batch_size": args.batch_size,
            "machine": machine,
        }
        args.output_json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0
