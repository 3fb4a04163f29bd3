"""GET /openapi.json and /docs: the API of this server, for programs and for people."""

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from jaxserve.server.admin.docs_page import render_docs
from jaxserve.server.http.answer import json_response

# The page runs no scripts and loads no resources.
HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}


async def get_openapi(http: Request) -> Response:
    """Answer with the OpenAPI document of this server."""
    return json_response(http.app.state.openapi())


async def get_docs(http: Request) -> Response:
    """Answer with an HTML page that documents this server's endpoints."""
    return HTMLResponse(render_docs(http.app.state.openapi()), headers=HEADERS)
