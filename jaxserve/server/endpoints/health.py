"""GET /health and /ready: whether to restart this server, and whether to send it requests."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from jaxserve.errors import EngineDeadError
from jaxserve.server.answer import json_response
from jaxserve.server.errors import ShuttingDownError
from jaxserve.server.state import server_state


class Status(msgspec.Struct):
    """A word for people; machines read the HTTP status."""

    status: str


async def health(http: Request) -> Response:
    """Answer 200 while the engines run: 503 means that only a restart helps.

    An engine writes a heartbeat from its loop, so that one that hangs is found too.
    """
    for model in server_state(http).models:
        model.client.check_health()
    return json_response(Status("ok"))


async def ready(http: Request) -> Response:
    """Answer 200 while requests are welcome: the engines run, and the server is not stopping.

    A server listens only once its models are loaded and warm.
    """
    state = server_state(http)
    if state.is_draining:
        raise ShuttingDownError
    if not state.is_alive:
        raise EngineDeadError("an engine has stopped")
    return json_response(Status("ready"))
