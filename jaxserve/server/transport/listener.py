"""Create the socket that a server listens on."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxserve.config.server import ServerConfig
from jaxserve.errors import ConfigError


@contextmanager
def bound(config: ServerConfig) -> Iterator[socket.socket]:
    """Yield a socket bound to the configured address. Raises ConfigError.

    Call it before loading a model, so that a port in use is reported at once.
    """
    if config.uds is None:
        with bind(config) as listener:
            yield listener
        return
    with _bind_unix(config.uds) as listener:
        try:
            yield listener
        finally:
            with suppress(FileNotFoundError):
                Path(config.uds).unlink()


def _bind_unix(path: str) -> socket.socket:
    """Return a Unix socket at `path`, replacing one that no server listens on."""
    if Path(path).is_socket():
        _check_abandoned(path)
        Path(path).unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        # Listen at once, so that another server's check finds this one.
        listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on uds {path}: {error.strerror}") from error
    listener.set_inheritable(False)
    return listener


def _check_abandoned(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
    raise ConfigError(f"cannot listen on uds {path}: another server listens on it")


def bind(config: ServerConfig) -> socket.socket:
    """Return a socket bound to the configured host and port. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {config.host} port {config.port}: the port is in use, or the"
            " address is not one of this machine"
        ) from error
    listener.set_inheritable(False)
    return listener
