"""GET / and its static files: the playground, a web page that is a client of this server.

The page is public and contains no data of the server. It gets its data from the API and /metrics,
which require a key if there are keys.
"""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).resolve().parent / "static"
PAGE = "index.html"
MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
# Only scripts of this server run. Text of a model cannot become markup, because the browser
# enforces Trusted Types and no policy is defined.
RULES = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
POLICY = "; ".join(RULES)
HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def playground_routes() -> list[Route]:
    """Return a route for each file of the page. The files are read now."""
    return [_route(path) for path in sorted(FOLDER.iterdir()) if path.suffix in MEDIA_TYPES]


def _route(file: Path) -> Route:
    content = file.read_bytes()
    media_type = MEDIA_TYPES[file.suffix]

    async def get_file(_: Request) -> Response:
        return Response(content, headers=HEADERS, media_type=media_type)

    return Route("/" if file.name == PAGE else f"/playground/{file.name}", get_file)
