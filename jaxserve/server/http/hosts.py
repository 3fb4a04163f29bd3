"""Validate the Host and Origin headers, against DNS rebinding and cross-site requests.

If the name of a web page is made to resolve to 127.0.0.1 (DNS rebinding), a browser treats a server
there as the page's own origin, and lets the page read its answers. Only the Host header shows the
other name. IP addresses cannot be rebound, so they are always accepted.
"""

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from jaxserve.config.server import ServerConfig
from jaxserve.observability.metrics import Metrics
from jaxserve.server.errors import ForbiddenError, error_response

ANY = "*"
# Reserved suffixes: no public name ends in these, so an attacker cannot register one.
LOCAL_SUFFIXES = (".localhost", ".local", ".internal")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
MAX_SHOWN_CHARS = 100


def allowed_hosts(config: ServerConfig) -> tuple[str, ...]:
    """Return the names allowed in the Host header: `*` for any, `*.example.com` for subdomains.

    By default any name is allowed, except on a loopback address without API keys, where only names
    of this machine are: there an attacker can reach the server through a local browser. Browsers
    cannot reach a Unix socket.
    """
    is_reachable = config.uds is None and is_loopback(config.host)
    if not config.allowed_hosts and (config.requires_keys or not is_reachable):
        return (ANY,)
    own = (config.host, "localhost", socket.gethostname())
    return tuple(name.lower() for name in (*own, *config.allowed_hosts))


def is_loopback(host: str) -> bool:
    """Whether a server that listens on `host` is reachable only from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def name_in(host: str) -> str:
    """Return the name or address in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".").lower()


class HostMiddleware:
    """Refuses requests for unknown hosts, and unsafe cross-origin requests.

    A server with API keys does not check origins, because a page of an attacker has no key.
    """

    def __init__(self, app: ASGIApp, *, config: ServerConfig, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._hosts = allowed_hosts(config)
        self._origins = config.allowed_origins
        self._checks_origins = not config.requires_keys and ANY not in config.allowed_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer 403."""
        app = self._app
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if not self._knows(headers.get("host", "")):
                app = self._refusal("host", headers["host"], "--allowed-hosts", scope)
            elif self._checks_origins and scope["method"] not in SAFE_METHODS:
                origin = headers.get("origin")
                if origin is not None and not self._welcomes(origin, headers):
                    app = self._refusal("origin", origin, "--allowed-origins", scope)
        await app(scope, receive, send)

    def _knows(self, host: str) -> bool:
        name = name_in(host)
        # Browsers always send a name.
        if ANY in self._hosts or not name or name in self._hosts or name.endswith(LOCAL_SUFFIXES):
            return True
        if any(known[0] == ANY and name.endswith(known[1:]) for known in self._hosts):
            return True
        return is_address(name)

    def _welcomes(self, origin: str, headers: Headers) -> bool:
        """Whether pages of an origin may send unsafe requests."""
        if origin in self._origins or headers.get("sec-fetch-site") == "same-origin":
            # Pages cannot set sec-fetch-site. It is needed if a proxy has changed Host.
            return True
        return urlsplit(origin).netloc.lower() == headers.get("host", "").lower() != ""

    def _refusal(self, what: str, value: str, flag: str, scope: Scope) -> ASGIApp:
        self._metrics.observe_refusal(what)
        error = ForbiddenError(
            f"requests with the {what} {value[:MAX_SHOWN_CHARS]!r} are not accepted: the operator"
            f" can allow it with {flag}",
            param=None,
            code=f"{what}_not_allowed",
        )
        return error_response(error, scope)


def is_address(name: str) -> bool:
    """Whether a name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
