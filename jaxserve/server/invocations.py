"""POST /invocations: a single path for all kinds of requests, as SageMaker requires."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.schema.ignored import IgnoredFields
from jaxserve.server.chat.handler import create_chat_completion
from jaxserve.server.completions.handler import create_completion
from jaxserve.server.http.bodies import read
from jaxserve.server.pooling.handler import classify, create_embeddings, rerank, score
from jaxserve.server.pooling.schema import FIRSTS
from jaxserve.server.state import ServerState, server_state

type Endpoint = Callable[[Request], Awaitable[Response]]


async def invoke(http: Request) -> Response:
    """Answer with the endpoint that matches the body and the kind of the model."""
    received: list[Message] = []

    async def recorded() -> Message:
        message = await http.receive()
        received.append(message)
        return message

    async def replayed() -> Message:
        return received.pop(0) if received else await http.receive()

    endpoint = await read(
        Request(http.scope, recorded), partial(endpoint_of, state=server_state(http))
    )
    return await endpoint(Request(http.scope, replayed))


def endpoint_of(fields: dict[str, Any], _: IgnoredFields, *, state: ServerState) -> Endpoint:
    """Return the endpoint that matches a body. Raises InvalidRequestError if there is none."""
    name = fields.get("model")
    pooling = state.router.model(name if isinstance(name, str) else None).pooling
    if pooling is None:
        if "messages" in fields:
            return create_chat_completion
        if "prompt" in fields:
            return create_completion
        raise InvalidRequestError(
            "the body must have messages or a prompt", param="messages", code="missing_field"
        )
    if "query" in fields:
        return rerank
    if not fields.keys().isdisjoint(FIRSTS):
        return score
    return create_embeddings if pooling.task == "embed" else classify
