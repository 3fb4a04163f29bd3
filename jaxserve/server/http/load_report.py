"""Load reports in headers, from which load balancers choose a server.

The reports are those of ORCA, as in vLLM:
https://github.com/cncf/xds/blob/main/xds/data/orca/v3/orca_load_report.proto
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxserve.observability.logging import get_logger
from jaxserve.observability.series import Family
from jaxserve.server.http.record import request_record
from jaxserve.server.state import ServerState

log = get_logger(__name__)

FORMAT_HEADER = "endpoint-load-metrics-format"
REPORT_HEADER = "endpoint-load-metrics"
# Gauges of an engine by their names in reports.
GAUGES = {
    "vllm:kv_cache_usage_perc": "kv_cache_usage_perc",
    "vllm:num_requests_waiting": "num_requests_waiting",
}
# Reading the gauges takes messages between processes, so answers share a reading for this long.
MAX_AGE_S = 0.1
# Answers do not wait longer than this for a reading.
TIMEOUT_S = 0.25


def _as_text(gauges: Mapping[str, float]) -> str:
    return "TEXT " + ", ".join(f"named_metrics.{name}={value}" for name, value in gauges.items())


def _as_json(gauges: Mapping[str, float]) -> str:
    return f"JSON {msgspec.json.encode({'named_metrics': gauges}).decode()}"


WRITERS: Mapping[str, Callable[[Mapping[str, float]], str]] = {"text": _as_text, "json": _as_json}


class LoadReportMiddleware:
    """Adds `endpoint-load-metrics` to a model's answers if the request names one of its formats.

    The values are those when the answer begins, at most MAX_AGE_S old. An answer has no report if
    the load cannot be read within TIMEOUT_S.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._reading: asyncio.Future[Sequence[Family]] | None = None
        self._read_s = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        is_http = scope["type"] == "http"
        wanted = Headers(scope=scope).get(FORMAT_HEADER, "").lower() if is_http else ""
        write = WRITERS.get(wanted)
        if write is None:
            if wanted:
                log.debug("no load report of this format", format=wanted[:16])
            await self._app(scope, receive, send)
            return

        async def send_with_report(message: Message) -> None:
            model = request_record(scope).model
            if message["type"] == "http.response.start" and model is not None:
                gauges = gauges_of(await self._read(scope["app"].state.server), model)
                if gauges:
                    MutableHeaders(scope=message)[REPORT_HEADER] = write(gauges)
            await send(message)

        await self._app(scope, receive, send_with_report)

    async def _read(self, state: ServerState) -> Sequence[Family]:
        """Return the current series, or none if they cannot be read in time."""
        now_s = time.monotonic()
        if self._reading is None or now_s - self._read_s > MAX_AGE_S:
            self._reading, self._read_s = asyncio.ensure_future(state.scrape()), now_s
        done, _ = await asyncio.wait({self._reading}, timeout=TIMEOUT_S)
        return done.pop().result() if done else ()


def gauges_of(families: Sequence[Family], model: str) -> dict[str, float]:
    """Return the gauges of a report by name, from the series of a model's engine."""
    return {
        GAUGES[family.name]: value
        for family in families
        if family.name in GAUGES
        for labels, (value,) in family.series
        if dict(zip(family.labels, labels, strict=True))["model_name"] == model
    }
