"""JSON responses."""

import msgspec
from starlette.responses import Response


def json_response(body: object) -> Response:
    """Return a response with a body encoded as JSON."""
    return Response(msgspec.json.encode(body), media_type="application/json")
