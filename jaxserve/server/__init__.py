"""The HTTP server: OpenAI's API in front of engines.

Names come when they are first asked for: the command line reads `ServerConfig` for its help, and
should not wait for the rest.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxserve.config.server import ServerConfig as ServerConfig
    from jaxserve.server.app import create_app as create_app
    from jaxserve.server.models import ServedModel as ServedModel
    from jaxserve.server.transport.listener import bind as bind

__all__ = ["ServedModel", "ServerConfig", "bind", "create_app"]

_HOMES = {
    "ServedModel": "server.models",
    "ServerConfig": "config.server",
    "bind": "server.transport.listener",
    "create_app": "server.app",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxserve.server' has no attribute {name!r}")
    return getattr(import_module(f"jaxserve.{_HOMES[name]}"), name)
