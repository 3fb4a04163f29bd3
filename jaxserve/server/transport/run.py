"""Run the application on uvicorn."""

import asyncio
import socket
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from jaxserve.config.server import ServerConfig
from jaxserve.server.batches.runner import BatchRunner
from jaxserve.server.state import ServerState
from jaxserve.server.transport.acceptor import Acceptor, Tls, affordable_connections
from jaxserve.server.transport.certificates import refresh_certificates
from jaxserve.server.transport.connections import Connections
from jaxserve.server.transport.http11 import protocol_class

# Time for clients to read the rest of their answers after the engines have shut down.
LAST_WORDS_S = 2.0


def uvicorn_config(
    app: Starlette, config: ServerConfig, connections: Connections
) -> uvicorn.Config:
    """Return uvicorn's settings, with our protocol, and without its logs and proxy headers."""
    state: ServerState = app.state.server
    return uvicorn.Config(
        app,
        http=protocol_class(config, connections, state.metrics),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=config.keep_alive_timeout_s,  # type: ignore[arg-type]
        timeout_graceful_shutdown=LAST_WORDS_S,  # type: ignore[arg-type]
        ssl_certfile=config.ssl_certfile,
        ssl_keyfile=config.ssl_keyfile,
        ssl_ca_certs=config.ssl_ca_certs,
        ssl_cert_reqs=config.ssl_cert_reqs,
        ssl_ciphers=config.ssl_ciphers,
    )


class Server(uvicorn.Server):
    """uvicorn's server with our acceptor, a graceful shutdown of engines, and no signal handlers.

    batches: the batch runner of this process, if any; it is stopped first.
    """

    def __init__(
        self, app: Starlette, config: ServerConfig, *, batches: BatchRunner | None = None
    ) -> None:
        self._state: ServerState = app.state.server
        self._connections = affordable_connections(config.max_connections)
        super().__init__(uvicorn_config(app, config, self._connections))
        self._batches = batches
        self._acceptors: list[Acceptor] = []
        self._is_open = True
        self._refresh: asyncio.Task[None] | None = None

    def wait(self) -> None:
        """Do not accept connections until `open` is called."""
        self._is_open = False

    def open(self) -> None:
        """Start accepting connections."""
        self._is_open = True
        for acceptor in self._acceptors:
            acceptor.open()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on `sockets`."""
        await self.lifespan.startup()
        self.servers = []  # uvicorn's own servers would accept at once
        tls = None
        if self.config.ssl is not None:
            tls = Tls(self.config.ssl, handshake_timeout_s=self._state.config.header_timeout_s)
        self._acceptors = [
            Acceptor(
                each,
                self._protocol,
                connections=self._connections,
                metrics=self._state.metrics,
                backlog=self.config.backlog,
                tls=tls,
                num_open=lambda: len(self.server_state.connections),
            )
            for each in sockets or []
        ]
        if self._state.config.ssl_refresh and self.config.ssl is not None:
            self._refresh = asyncio.create_task(
                refresh_certificates(self.config.ssl, self._state.config)
            )
        if self._is_open:
            self.open()
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, shut down batches and engines, and close the connections."""
        self._state.is_stopping = self._state.capacity.is_draining = True
        if self._refresh is not None:
            self._refresh.cancel()
        for acceptor in self._acceptors:
            acceptor.close()
        if self._batches is not None:
            await self._batches.stop()
        models = () if self._state.router.is_loading else self._state.router.models
        drain_timeout_s = self._state.config.shutdown_timeout_s
        await asyncio.gather(
            *(model.client.shutdown(drain_timeout_s=drain_timeout_s) for model in models)
        )
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Capture no signals: the owner of the server sets `should_exit` to stop it."""
        yield

    def _protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made
