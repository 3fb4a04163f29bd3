"""`jaxserve bench`: measure an engine, or any OpenAI-compatible server."""

import argparse

from jaxserve.commands.bench import latency, serve, startup, throughput

HELP = "measure how fast a model is served"
BENCHMARKS = {
    "serve": serve,
    "latency": latency,
    "throughput": throughput,
    "startup": startup,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one subcommand for each benchmark."""
    benchmarks = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    for name, benchmark in BENCHMARKS.items():
        subparser = benchmarks.add_parser(name, help=benchmark.HELP, description=benchmark.__doc__)
        benchmark.add_arguments(subparser)
        subparser.set_defaults(benchmark=benchmark.run)


def run(args: argparse.Namespace) -> int:
    """Run a benchmark."""
    status: int = args.benchmark(args)
    return status
