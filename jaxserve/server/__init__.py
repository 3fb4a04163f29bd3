"""The HTTP server: OpenAI's API in front of engines."""

from jaxserve.server.app import create_app as create_app
from jaxserve.server.config import ServerConfig as ServerConfig
from jaxserve.server.run import bind as bind
from jaxserve.server.run import serve as serve
from jaxserve.server.state import ServedModel as ServedModel

__all__ = ["ServedModel", "ServerConfig", "bind", "create_app", "serve"]
