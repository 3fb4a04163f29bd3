"""The application on uvicorn, from the first connection to the last answer."""

import asyncio
import socket
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from jaxserve.config.server import ServerConfig
from jaxserve.server.batches.runner import BatchRunner
from jaxserve.server.state import ServerState
from jaxserve.server.transport.acceptor import Acceptor, affordable_connections
from jaxserve.server.transport.certificates import refresh_certificates
from jaxserve.server.transport.connections import Connections
from jaxserve.server.transport.http11 import protocol_class

# After the engines have ended every answer, this much for what is left of them to be read.
LAST_WORDS_S = 2.0


def uvicorn_config(
    app: Starlette, config: ServerConfig, connections: Connections
) -> uvicorn.Config:
    """Return uvicorn's settings: its own protocol, log and header guesses replaced or off."""
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
    """uvicorn's server, which ends answers with their last word, and leaves signals to others.

    batches: what runs batches in this process, if it does; it is stopped first.
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
        """Accept no connections before `open` is called."""
        self._is_open = False

    def open(self) -> None:
        """Accept connections from now on."""
        self._is_open = True
        for acceptor in self._acceptors:
            acceptor.open()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on `sockets`."""
        await self.lifespan.startup()
        self.servers = []  # uvicorn's own, which cannot wait
        self._acceptors = [
            Acceptor(
                each,
                self._protocol,
                connections=self._connections,
                metrics=self._state.metrics,
                backlog=self.config.backlog,
                tls=self.config.ssl,
                handshake_timeout_s=self._state.config.header_timeout_s,
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
        """Take nothing new, let the engines finish or end what they have, close what is left."""
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
        """Capture none: who started this process says when to stop, by `should_exit`."""
        yield

    def _protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made
