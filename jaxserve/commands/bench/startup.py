"""Measure the time from the start of `jaxserve serve` to its first token.

Each start is a new process. Cold starts have an empty compilation cache, warm starts a full one.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxserve.commands.arguments import add_engine_arguments, model_of, say
from jaxserve.config.flags import ENGINE_FLAGS, given

HELP = "seconds from the start of a server to its first token"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's arguments."""
    add_engine_arguments(parser)
    group = parser.add_argument_group("measurement")
    for name, default, text in (
        ("--num-iters-cold", 3, "starts with an empty cache"),
        ("--num-iters-warmup", 1, "starts that fill a cache, not measured"),
        ("--num-iters-warm", 3, "starts with that cache"),
    ):
        group.add_argument(
            name, type=int, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    group.add_argument("--output-json", type=Path, metavar="FILE", help="write the results there")


def run(args: argparse.Namespace) -> int:
    """Print the stages of cold and warm starts."""
    from jaxserve.bench import startup
    from jaxserve.bench.environment import describe_host

    arguments = engine_arguments(args)
    host = describe_host()
    print(f"jaxserve serve {' '.join(arguments)}")
    print(", ".join(f"{name} {value}" for name, value in host.items()), flush=True)
    starts: dict[str, list[startup.Start]] = {}
    for kind, start in startup.measure_startup(
        arguments,
        num_cold=args.num_iters_cold,
        num_warmup=args.num_iters_warmup,
        num_warm=args.num_iters_warm,
    ):
        say(f"{kind}: listens after {start.ready_s:.2f} s, token after {start.first_token_s:.2f} s")
        starts.setdefault(kind, []).append(start)
    for kind, found in starts.items():
        print(startup.report(kind, found))
    if args.output_json is not None:
        record = {"arguments": arguments, "machine": host}
        for kind, found in starts.items():
            record |= startup.fields(kind, found)
        args.output_json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


def engine_arguments(args: argparse.Namespace) -> list[str]:
    """Return the model and the engine's flags, for the command line of another process."""
    model = model_of(args)
    flags = given(args, ENGINE_FLAGS)
    words = [word for name, value in flags.items() for word in _words(name, value)]
    return [*([] if model is None else [model]), *words]


def _words(keyword: str, value: object) -> Iterator[str]:
    flag = keyword.replace("_", "-")
    match value:
        case bool():
            yield f"--{flag}" if value else f"--no-{flag}"
        case str() | int() | float():
            yield f"--{flag}={value}"
        case Iterable():
            yield f"--{flag}"
            yield from map(str, value)
