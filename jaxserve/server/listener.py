"""The socket that a server listens on."""

import socket

from jaxserve.errors import ConfigError
from jaxserve.server.config import ServerConfig


def bind(config: ServerConfig) -> socket.socket:
    """Return a socket bound to the configured address, to listen on.

    To be called before a model is loaded: a port that is taken should be known at once. Raises
    ConfigError.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {config.host} port {config.port}: the port is taken, or the"
            " address is not this machine's"
        ) from error
    listener.set_inheritable(False)
    return listener
