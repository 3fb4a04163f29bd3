"""The application on uvicorn, from the first connection to the last answer."""

import asyncio
import socket
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from jaxserve.server.batch_runner import BatchRunner
from jaxserve.server.config import ServerConfig
from jaxserve.server.http11 import MAX_HEADER_BYTES, protocol_class
from jaxserve.server.state import ServerState

# After the engines have ended every answer, this much for what is left of them to be read.
LAST_WORDS_S = 2.0


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
    """uvicorn's server, which ends answers with their last word, and leaves signals to others.

    batches: what runs batches in this process, if it does; it is stopped first.
    """

    def __init__(
        self, config: uvicorn.Config, state: ServerState, batches: BatchRunner | None = None
    ) -> None:
        super().__init__(config)
        self._state = state
        self._batches = batches

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing new, let the engines finish or end what they have, close what is left."""
        self._state.is_draining = True
        for server in self.servers:
            server.close()
        if self._batches is not None:
            await self._batches.stop()
        models = () if self._state.is_loading else self._state.models
        drain_timeout_s = self._state.config.shutdown_timeout_s
        await asyncio.gather(
            *(model.client.shutdown(drain_timeout_s=drain_timeout_s) for model in models)
        )
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Capture none: who started this process says when to stop, by `should_exit`."""
        yield
