"""Whole answers."""

import msgspec
from starlette.responses import Response


def json_response(body: object) -> Response:
    """Return a body as the answer."""
    return Response(msgspec.json.encode(body), media_type="application/json")
