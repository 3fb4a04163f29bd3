"""GET /live, /health, /ready and /load: liveness, health, readiness and load of a server."""

from collections.abc import Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from jaxserve.server.batches.trouble import BatchTrouble
from jaxserve.server.errors import EngineSilentError, LoadingError, ShuttingDownError
from jaxserve.server.http.answer import json_response
from jaxserve.server.models import KernelChoice
from jaxserve.server.state import server_state


class ModelHealth(msgspec.Struct, omit_defaults=True):
    """A model's kernels, and whether its engine is serving."""

    kernels: Mapping[str, KernelChoice]
    is_alive: bool = True


class Status(msgspec.Struct, omit_defaults=True):
    """Details for people; machines use the HTTP status."""

    status: str
    models: dict[str, ModelHealth] = {}
    batches: BatchTrouble | None = None


class Load(msgspec.Struct):
    """Number of requests that the answering process is running."""

    server_load: int


async def live(_: Request) -> Response:
    """Answer 200 while this process runs, whatever the state of its engine.

    The server restarts its engine itself, and exits if that does not help.
    """
    return json_response(Status("alive"))


async def health(http: Request) -> Response:
    """Answer 200 while the engines serve, 503 with the reason while they load, hang or are gone.

    An engine writes a heartbeat from its loop, so that one that hangs is found too.
    """
    state = server_state(http)
    models = state.router.models
    if not any(model.client.is_alive for model in models):
        models[0].client.check_health()
    details = {
        model.name: ModelHealth(model.kernels, is_alive=model.client.is_alive) for model in models
    }
    # Delayed batches are not a reason to restart a server.
    return json_response(Status("ok", details, state.batch_trouble))


async def ready(http: Request) -> Response:
    """Answer 200 while models are loaded, engines are responding, and the server is not stopping.

    Unlike /health, it fails within 2 s of an engine pausing, because sending requests elsewhere is
    cheaper than restarting the server.
    """
    state = server_state(http)
    if state.is_stopping:
        raise ShuttingDownError
    models = state.router.models
    if not state.router.is_complete:
        raise LoadingError
    if not any(model.client.is_alive for model in models):
        models[0].client.check_health()
    if not any(model.client.is_responding for model in models):
        raise EngineSilentError
    return json_response(Status("ready"))


async def load(http: Request) -> Response:
    """Answer with the number of requests that this process is running."""
    return json_response(Load(server_state(http).capacity.num_active))
