"""The HTTP server: OpenAI's API in front of engines.

Names come when they are first asked for: the command line reads `ServerConfig` for its help, and
should not wait for the rest.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxserve.server.app import create_app as create_app
    from jaxserve.server.config import ServerConfig as ServerConfig
    from jaxserve.server.listener import bind as bind
    from jaxserve.server.state import ServedModel as ServedModel

__all__ = ["ServedModel", "ServerConfig", "bind", "create_app"]

_HOMES = {
    "ServedModel": "state",
    "ServerConfig": "config",
    "bind": "listener",
    "create_app": "app",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxserve.server' has no attribute {name!r}")
    return getattr(import_module(f"jaxserve.server.{_HOMES[name]}"), name)
