"""State shared by the endpoints of a server."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from starlette.requests import Request

from jaxserve.access.key_store import KeyStore
from jaxserve.access.policy import Policies, Policy
from jaxserve.config.server import ServerConfig
from jaxserve.observability.metrics import Metrics
from jaxserve.observability.series import Family
from jaxserve.server.batches.store import BatchStore
from jaxserve.server.batches.trouble import BatchTrouble
from jaxserve.server.capacity import Capacity
from jaxserve.server.http.body_budget import BodyBudget
from jaxserve.server.http.lanes import Lanes
from jaxserve.server.models import ModelRouter
from jaxserve.server.responses.store import ResponseStore

# Bytes of each body and of each upload that do not count towards the budgets: those buffered before
# the endpoint reads them, and those that a form keeps in memory.
FREE_BODY_BYTES = 2**16
FREE_UPLOAD_BYTES = 2**20
# Total size of uploads in progress, which are temporary files: five of the largest files.
MAX_UPLOADING_BYTES = 1000 * 2**20

type Scrape = Callable[[], Awaitable[Sequence[Family]]]


def server_state(http: Request) -> "ServerState":
    """Return the state of this request's server."""
    state: ServerState = http.app.state.server
    return state


class ServerState:
    """State shared by the endpoints of a server.

    folder: folder for stored objects, shared by the server's processes. keys: the store of API
    keys, if the server has one. policies: admission
    policies, applied after the server's capacity. scrape: returns the series to export, by default
    those of `metrics`. batch_trouble: what delays batches, in the process that runs them.
    """

    def __init__(
        self,
        router: ModelRouter,
        *,
        metrics: Metrics,
        config: ServerConfig,
        folder: Path,
        keys: KeyStore | None = None,
        policies: Sequence[Policy] = (),
        scrape: Scrape | None = None,
    ) -> None:
        self.router = router
        self.keys = keys
        self.metrics = metrics
        self.capacity = Capacity(config.max_concurrent_requests, metrics=metrics)
        self.policy = Policies([self.capacity, *policies])
        self.responses = ResponseStore(
            folder,
            max_responses=config.max_stored_responses,
            max_bytes=config.max_stored_response_bytes,
        )
        self.batches = BatchStore(
            folder / "batches" if config.batch_dir is None else Path(config.batch_dir),
            max_bytes=config.max_batch_bytes,
            max_batches=config.max_batches,
        )
        self.body_budget = BodyBudget(config.max_buffered_body_bytes, free_bytes=FREE_BODY_BYTES)
        self.upload_budget = BodyBudget(MAX_UPLOADING_BYTES, free_bytes=FREE_UPLOAD_BYTES)
        self.files = self.batches.files
        self.batch_trouble: BatchTrouble | None = None
        # Responses generated in the background.
        self.background: set[asyncio.Task[None]] = set()
        self.scrape = scrape or self._own_series
        self.config = config
        # Whether the server reports not ready; it accepts requests until `capacity` drains.
        self.is_stopping = False
        self.lanes = Lanes()

    def note_batches(self, trouble: BatchTrouble | None) -> None:
        """Set what delays batches; None when they proceed."""
        self.batch_trouble = trouble

    async def _own_series(self) -> Sequence[Family]:
        return self.metrics.snapshot()
