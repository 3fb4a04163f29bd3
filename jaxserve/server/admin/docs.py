"""GET /openapi.json and /docs: what this server understands, for programs and for people."""

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from jaxserve.server.admin.docs_page import render_docs
from jaxserve.server.http.answer import json_response

# The page runs nothing and loads nothing.
HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}


async def get_openapi(http: Request) -> Response:
    """Answer with the OpenAPI document of this server."""
    return json_response(http.app.state.openapi())


async def get_docs(http: Request) -> Response:
    """Answer with a page to read about this server's endpoints."""
    return HTMLResponse(render_docs(http.app.state.openapi()), headers=HEADERS)
