"""GET /metrics, in Prometheus' text format."""

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from jaxserve.observability.metrics import render
from jaxserve.server.state import server_state


async def metrics(http: Request) -> Response:
    """Answer with the current metrics."""
    series = await server_state(http).scrape()
    return Response(render(series), headers={"content-type": CONTENT_TYPE_LATEST})
