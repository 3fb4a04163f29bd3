"""Measure any OpenAI-compatible server from the client's side.

Several loads make a sweep.
"""

import argparse
import json
import math
import os
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

from jaxserve.commands.arguments import say
from jaxserve.commands.bench.dataset import add_dataset_arguments, dataset_options, numbers, rates
from jaxserve.errors import ConfigError

if TYPE_CHECKING:
    from jaxserve.bench.serve import ServeSettings
    from jaxserve.bench.serve_results import Reporting

HELP = "latency and throughput of a server, as its clients see them"
METRICS = ("ttft", "tpot", "itl", "e2el", "client_queue_time")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's arguments."""
    _add_server(parser)
    add_dataset_arguments(parser)
    _add_traffic(parser)
    _add_request(parser)
    _add_results(parser)


def _add_server(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument("--base-url", metavar="URL", help="instead of --host and --port")
    group.add_argument("--host", default="127.0.0.1", help="(default: %(default)s)")
    group.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    group.add_argument(
        "--backend",
        choices=("openai", "openai-chat", "vllm"),
        default="openai",
        help="completions or chats; vllm is openai (default: %(default)s)",
    )
    group.add_argument("--endpoint", metavar="PATH", help="(default: the backend's)")
    group.add_argument("--model", help="name of the model (default: the server's first)")
    group.add_argument("--served-model-name", metavar="NAME", help="the name, if not --model")
    group.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FOLDER",
        help="folder with tokenizer.json (default: the model's, where it is on this machine)",
    )
    group.add_argument(
        "--header", nargs="*", default=[], metavar="NAME=VALUE", help="sent with each request"
    )
    group.add_argument("--insecure", action="store_true", help="take any TLS certificate")
    group.add_argument(
        "--ready-check-timeout-sec",
        type=float,
        default=0,
        metavar="S",
        help="seconds to wait for the server to answer (default: 0, no check)",
    )


def _add_traffic(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("traffic")
    group.add_argument(
        "--num-prompts", type=int, default=1000, metavar="N", help="requests (default: 1000)"
    )
    group.add_argument("--seed", type=int, default=0, help="of prompts and arrivals (default: 0)")
    group.add_argument(
        "--request-rate",
        type=rates,
        default=[math.inf],
        metavar="R[,R...]",
        help="requests per second (default: inf, all at once); several make a sweep",
    )
    group.add_argument(
        "--burstiness",
        type=float,
        default=1.0,
        metavar="B",
        help="shape of the gaps: 1 Poisson (default), less in bursts, more evenly",
    )
    group.add_argument(
        "--max-concurrency",
        type=numbers,
        metavar="N[,N...]",
        help="requests under way at once, at most; several make a sweep",
    )
    group.add_argument("--ramp-up-strategy", choices=("linear", "exponential"))
    for name in ("--ramp-up-start-rps", "--ramp-up-end-rps"):
        group.add_argument(name, type=float, default=0.0, metavar="R")
    group.add_argument(
        "--num-warmups", type=int, default=0, metavar="N", help="requests before the clock starts"
    )


def _add_request(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("request")
    group.add_argument("--ignore-eos", action="store_true", help="generate every token asked for")
    for name, kind in (("--temperature", float), ("--top-p", float), ("--top-k", int)):
        group.add_argument(name, type=kind, help="(default: the server's)")
    group.add_argument(
        "--extra-body", type=json.loads, default={}, metavar="JSON", help="further fields"
    )


def _add_results(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("results")
    group.add_argument(
        "--goodput",
        nargs="+",
        default=[],
        metavar="NAME:MS",
        help="count requests within limits: ttft:200 tpot:50 e2el:3000",
    )
    group.add_argument(
        "--percentile-metrics",
        type=_metrics,
        default=["ttft", "tpot", "itl", "e2el"],
        metavar="NAMES",
        help=f"of {', '.join(METRICS)} (default: ttft,tpot,itl,e2el)",
    )
    group.add_argument(
        "--metric-percentiles", type=rates, default=[99.0], metavar="P[,P...]", help="(default: 99)"
    )
    group.add_argument("--save-result", action="store_true", help="write JSON with vLLM's keys")
    group.add_argument("--save-detailed", action="store_true", help="with every request in it")
    group.add_argument("--result-dir", type=Path, default=Path(), metavar="FOLDER")
    group.add_argument("--result-filename", metavar="NAME")
    group.add_argument("--label", help="begins the file's name (default: the backend)")
    group.add_argument(
        "--metadata", nargs="*", default=[], metavar="NAME=VALUE", help="kept in the file"
    )
    group.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw a sweep as SVG or PNG: throughput against latency, latency against load",
    )
    group.add_argument("--disable-tqdm", action="store_true", help="show no progress")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark. Return 1 if any request failed."""
    import uvloop

    from jaxserve.bench.plots import require_pyplot

    if args.plot is not None:
        require_pyplot()  # before the measurements, not after them
    return uvloop.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    from jaxserve.bench.serve import Point, measure_server
    from jaxserve.bench.serve_results import (
        draw_sweep,
        report,
        result_fields,
        warnings,
        write_result,
    )

    settings, reporting = _settings(args), _reporting(args)
    points: list[Point] = []
    async with aclosing(measure_server(settings)) as measured:
        async for point in measured:
            print(report(point, settings, reporting), flush=True)
            for line in warnings(point):
                say(f"warning: {line}")
            if reporting.folder is not None:
                fields = result_fields(point, settings, reporting)
                say(f"wrote {write_result(fields, reporting, index=len(points))}")
            points.append(point)
    if args.plot is not None:
        draw_sweep(args.plot, points, title=args.label or "Serving under load")
        say(f"drew {args.plot}")
    return int(any(point.metrics.failed for point in points))


def _settings(args: argparse.Namespace) -> "ServeSettings":
    from jaxserve.bench.arrivals import Arrivals
    from jaxserve.bench.serve import ServeSettings
    from jaxserve.bench.serving_metrics import parse_goodput

    sampling = {
        name: value
        for name in ("temperature", "top_p", "top_k")
        if (value := getattr(args, name)) is not None
    }
    headers = _pairs("header", args.header)
    if key := os.environ.get("OPENAI_API_KEY"):
        headers.setdefault("Authorization", f"Bearer {key}")
    arrivals = [
        Arrivals(
            request_rate=rate,
            burstiness=args.burstiness,
            ramp_up=args.ramp_up_strategy,
            start_rps=args.ramp_up_start_rps,
            end_rps=args.ramp_up_end_rps,
        )
        for rate in args.request_rate
    ]
    return ServeSettings(
        base_url=args.base_url or f"http://{args.host}:{args.port}",
        dataset=dataset_options(args, seed=args.seed),
        backend=args.backend,
        path=args.endpoint,
        model=args.served_model_name or args.model,
        tokenizer=args.tokenizer,
        headers=headers,
        verify=not args.insecure,
        ready_timeout_s=args.ready_check_timeout_sec,
        arrivals=arrivals,
        concurrencies=args.max_concurrency or [None],
        num_warmups=args.num_warmups,
        ignore_eos=args.ignore_eos,
        extra=sampling | args.extra_body,
        goodput=parse_goodput(args.goodput),
        show_progress=not args.disable_tqdm,
    )


def _reporting(args: argparse.Namespace) -> "Reporting":
    from jaxserve.bench.serve_results import Reporting

    return Reporting(
        metrics=args.percentile_metrics,
        percents=args.metric_percentiles,
        folder=args.result_dir if args.save_result else None,
        filename=args.result_filename,
        is_detailed=args.save_detailed,
        label=args.label,
        metadata=_pairs("metadata", args.metadata),
    )


def _pairs(name: str, words: list[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    if not all(equals for _, equals, _ in pairs):
        raise ConfigError(f"{name} must be like NAME=VALUE, got {' '.join(words)}")
    return {key: value for key, _, value in pairs}


def _metrics(text: str) -> list[str]:
    """Parse names of metrics. Raises ValueError."""
    names = text.split(",")
    if not set(names) <= set(METRICS):
        raise ValueError
    return names
