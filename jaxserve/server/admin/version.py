"""GET /version."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from jaxserve import __version__
from jaxserve.server.http.answer import json_response


class Version(msgspec.Struct):
    """The version of jaxserve."""

    version: str


async def version(_: Request) -> Response:
    """Answer with the version of jaxserve."""
    return json_response(Version(__version__))
