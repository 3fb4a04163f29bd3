"""Output of `jaxserve bench serve`: text, result files and plots."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from jaxserve.bench.environment import about_line, describe_host
from jaxserve.bench.plots import Axes, draw
from jaxserve.bench.serve import Point, ServeSettings
from jaxserve.bench.serving_metrics import request_fields

# Above this CPU use the client itself may be the bottleneck.
BUSY_CLIENT_CORES = 0.5
PLOTTED_PERCENTS = (50.0, 90.0, 99.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporting:
    """Output settings: metrics with vLLM's names, percentiles and result file.

    folder: None writes no file. filename: None composes one from label, rate, concurrency, model
    and time, as in vLLM.
    """

    metrics: Sequence[str] = ("ttft", "tpot", "itl", "e2el")
    percents: Sequence[float] = (99.0,)
    folder: Path | None = None
    filename: str | None = None
    is_detailed: bool = False
    label: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])


def report(point: Point, settings: ServeSettings, reporting: Reporting) -> str:
    """Return the block that vLLM prints."""
    return point.metrics.report(
        reporting.metrics,
        reporting.percents,
        max_concurrency=point.load.max_concurrency,
        request_rate=point.load.arrivals.request_rate,
        has_goodput=bool(settings.goodput),
    )


def warnings(point: Point) -> list[str]:
    """Return what makes the figures doubtful."""
    errors = [record.error for record in point.run.records if record.error is not None]
    found = [f"{len(errors)} requests failed; the first: {errors[0]}"] if errors else []
    if point.run.client_cores > BUSY_CLIENT_CORES:
        found.append(
            f"the client used {point.run.client_cores:.2f} of a core: it may be the bottleneck"
        )
    wanted = sum(
        job.num_output_tokens
        for job, record in zip(point.workload.jobs, point.run.records, strict=True)
        if record.error is None
    )
    if missing := wanted - point.metrics.num_output:
        found.append(f"{missing} of {wanted} requested tokens are missing (use --ignore-eos?)")
    return found


def result_fields(point: Point, settings: ServeSettings, reporting: Reporting) -> dict[str, Any]:
    """Return the contents of a result file: vLLM's keys and the environment."""
    arrivals = point.load.arrivals
    ramp_up = {
        "ramp_up_strategy": arrivals.ramp_up,
        "ramp_up_start_rps": arrivals.start_rps,
        "ramp_up_end_rps": arrivals.end_rps,
    }
    return {
        "date": datetime.now().astimezone().strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": settings.backend,
        "backend": settings.backend,
        "label": reporting.label or settings.backend,
        "model_id": point.model,
        "tokenizer_id": None if settings.tokenizer is None else str(settings.tokenizer),
        "num_prompts": len(point.workload.jobs),
        **reporting.metadata,
        "request_rate": _or_inf(arrivals.request_rate),
        "burstiness": _or_inf(arrivals.burstiness),
        "max_concurrency": point.load.max_concurrency,
        **(ramp_up if arrivals.ramp_up is not None else {}),
        **point.metrics.fields(
            reporting.metrics, reporting.percents, has_goodput=bool(settings.goodput)
        ),
        **(request_fields(point.run.records) if reporting.is_detailed else {}),
        "workload": point.workload.name,
        "machine": describe_host(),
        "client_cores": point.run.client_cores,
    }


def write_result(fields: Mapping[str, Any], reporting: Reporting, *, index: int) -> Path:
    """Write a result file. index: position of the point in a sweep, from 0."""
    assert reporting.folder is not None
    name = reporting.filename
    if name is None:
        concurrency = fields["max_concurrency"]
        words = [fields["label"], f"{fields['request_rate']}qps"]
        words += [] if concurrency is None else [f"concurrency{concurrency}"]
        words += [Path(fields["model_id"]).name, fields["date"]]
        name = "-".join(words) + ".json"
    elif index > 0:
        name = f"{Path(name).stem}-{index}{Path(name).suffix}"
    reporting.folder.mkdir(parents=True, exist_ok=True)
    target = reporting.folder / name
    target.write_text(json.dumps(fields) + "\n", encoding="utf-8")
    return target


def draw_sweep(path: Path, points: Sequence[Point], *, title: str) -> None:
    """Plot throughput against latency, and percentiles of latency against load."""
    by_rate = len({point.load.arrivals.request_rate for point in points}) > 1
    loads = [
        point.load.arrivals.request_rate if by_rate else point.load.max_concurrency or 0
        for point in points
    ]
    load_label = "requests per second" if by_rate else "concurrent requests"
    labels = [f"{load:g}" for load in loads]
    tokens_per_s = [point.metrics.num_output / point.metrics.duration_s for point in points]
    shown = {
        name: [p.metrics.figures([name], PLOTTED_PERCENTS)[name] for p in points]
        for name in ("tpot", "ttft")
    }

    def against_load(name: str, heading: str) -> Axes:
        return Axes(
            title=f"{heading} against load",
            x_label=load_label,
            y_label=f"{name.upper()} (ms)",
            lines={
                key: [
                    (load, figures[key]) for load, figures in zip(loads, shown[name], strict=True)
                ]
                for key in ("p50", "p90", "p99")
            },
            log_x=not by_rate,
            log_y=True,
        )

    diagrams = [
        Axes(
            title="Throughput against latency",
            x_label="median TPOT (ms)",
            y_label="output tokens per second",
            lines={
                load_label: [
                    (figures["p50"], rate)
                    for figures, rate in zip(shown["tpot"], tokens_per_s, strict=True)
                ]
            },
            labels={load_label: labels},
        ),
        against_load("ttft", "First token"),
        against_load("tpot", "Further tokens"),
    ]
    about = about_line(Path(points[0].model).name, points[0].workload.name)
    draw(path, diagrams, title=title, about=about)


def _or_inf(value: float) -> float | str:
    """Return a number, with infinity as a string for JSON."""
    return value if math.isfinite(value) else "inf"
