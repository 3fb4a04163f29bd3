"""Which names a server may be called by, and which web pages may change something on it.

A page whose name resolves to 127.0.0.1 (DNS rebinding) is of the same origin as a server there, as
far as a browser knows, and may read its answers. Only the Host header shows that the page means
another host. Addresses cannot be rebound, so they are always accepted.
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
# Reserved: no public name ends in these, so that nobody can register one to rebind it.
LOCAL_SUFFIXES = (".localhost", ".local", ".internal")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
MAX_SHOWN_CHARS = 100


def allowed_hosts(config: ServerConfig) -> tuple[str, ...]:
    """Return the names that the Host header may have; `*` for any, `*.example.com` for some.

    By default any, but names of this machine only on a loopback address without a key: there a
    browser on this machine is the only way for others to reach the server. No browser reaches a
    Unix socket.
    """
    is_reachable = config.uds is None and is_loopback(config.host)
    if not config.allowed_hosts and (config.api_keys or not is_reachable):
        return (ANY,)
    own = (config.host, "localhost", socket.gethostname())
    return tuple(name.lower() for name in (*own, *config.allowed_hosts))


def is_loopback(host: str) -> bool:
    """Return whether a server that listens on `host` is reached from this machine only."""
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
    """Refuses requests to other hosts, and those of other hosts' pages that would change something.

    A server with keys does not look at pages: none of them has a key that it was not given.
    """

    def __init__(self, app: ASGIApp, *, config: ServerConfig, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._hosts = allowed_hosts(config)
        self._origins = config.allowed_origins
        self._checks_origins = not config.api_keys and ANY not in config.allowed_origins

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
        # No browser leaves it empty or out.
        if ANY in self._hosts or not name or name in self._hosts or name.endswith(LOCAL_SUFFIXES):
            return True
        if any(known[0] == ANY and name.endswith(known[1:]) for known in self._hosts):
            return True
        return is_address(name)

    def _welcomes(self, origin: str, headers: Headers) -> bool:
        """Return whether pages of an origin may change something here."""
        if origin in self._origins or headers.get("sec-fetch-site") == "same-origin":
            # A page cannot write the second header. It counts where a proxy has changed Host.
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
    """Return whether a name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
