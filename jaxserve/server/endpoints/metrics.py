"""GET /metrics: Prometheus' text format."""

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from jaxserve.server.state import server_state


async def metrics(http: Request) -> Response:
    """Answer with every series as it is now."""
    return Response(
        server_state(http).metrics.render(), headers={"content-type": CONTENT_TYPE_LATEST}
    )
