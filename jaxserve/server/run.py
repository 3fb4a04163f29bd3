"""Running the application on uvicorn, from the first connection to the last answer."""

import asyncio
import signal
import socket
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from jaxserve import __version__
from jaxserve.errors import ConfigError
from jaxserve.logging import get_logger
from jaxserve.server.config import ServerConfig
from jaxserve.server.http11 import MAX_HEADER_BYTES, protocol_class
from jaxserve.server.state import ServerState

log = get_logger(__name__)

# After the engines have ended every answer, this much for what is left of them to be read.
LAST_WORDS_S = 2.0


def bind(config: ServerConfig) -> socket.socket:
    """Return a socket bound to the configured address, for `serve`.

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


def serve(app: Starlette, config: ServerConfig, *, listener: socket.socket | None = None) -> int:
    """Serve until told to stop; return the exit status of the process.

    0 after SIGTERM or SIGINT: no new requests, the answers under way get `shutdown_timeout_s` to
    finish, what is left ends with an error, and the engines are stopped. 1 after a second signal,
    which stops everything at once, and when an engine has died. Prints one line when ready.
    """
    listener = bind(config) if listener is None else listener
    server = Server(uvicorn_config(app, config), app.state.server)
    server.run(sockets=[listener])
    return server.exit_status


def uvicorn_config(app: Starlette, config: ServerConfig) -> uvicorn.Config:
    """Return uvicorn's settings: its own protocol, log and header guesses replaced or off."""
    return uvicorn.Config(
        app,
        http=protocol_class(config),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        limit_concurrency=config.max_connections,
        timeout_keep_alive=config.keep_alive_timeout_s,  # type: ignore[arg-type]
        timeout_graceful_shutdown=LAST_WORDS_S,  # type: ignore[arg-type]
        ssl_certfile=config.ssl_certfile,
        ssl_keyfile=config.ssl_keyfile,
    )


class Server(uvicorn.Server):
    """uvicorn's server, which ends answers with their last word and tells how it went."""

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config)
        self._state = state
        self.exit_status = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so in one line."""
        await super().startup(sockets)
        address, port = self.servers[0].sockets[0].getsockname()[:2]
        scheme = "https" if self.config.is_ssl else "http"
        host = f"[{address}]" if ":" in address else address
        names = ", ".join(name for model in self._state.models for name in model.names)
        print(f"jaxserve {__version__} serves {names} at {scheme}://{host}:{port}", flush=True)

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop: because it was asked for, or because an engine died."""
        if not self._state.is_alive:
            log.error("an engine has died: stopping")
            self.exit_status = 1
            return True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing new, let the engines finish or end what they have, close what is left."""
        self._state.is_draining = True
        for server in self.servers:
            server.close()
        drain_timeout_s = self._state.config.shutdown_timeout_s
        await asyncio.gather(
            *(
                model.client.shutdown(drain_timeout_s=drain_timeout_s)
                for model in self._state.models
            )
        )
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Stop gracefully at the first signal and at once at the second.

        uvicorn would raise the first one again at the end, and so never exit with 0.
        """
        if self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self.should_exit = True
