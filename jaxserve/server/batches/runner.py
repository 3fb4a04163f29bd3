"""Runner of batches: sends every line to its endpoint, at the lowest priority."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from functools import partial

from msgspec import UNSET

from jaxserve.errors import InvalidRequestError, StorageError
from jaxserve.observability.logging import get_logger
from jaxserve.observability.metrics import Metrics
from jaxserve.server.batches.lines import (
    MAX_RETRY_S,
    MIN_RETRY_S,
    POLL_S,
    LineRunner,
    Numbered,
    check_lines,
    read_lines,
    result_of,
)
from jaxserve.server.batches.schema import (
    Batch,
    BatchError,
    BatchErrors,
    LineError,
)
from jaxserve.server.batches.store import BatchStore
from jaxserve.server.batches.trouble import BatchTrouble

log = get_logger(__name__)

INTERNAL = "internal"


class BatchRunner:
    """Runs the batches of a store, one after the other, oldest first.

    One process of a server does so. If it ends, the next one continues, and each line gets exactly
    one result. While the storage fails, each operation is retried with exponential backoff: no
    batch fails because of it, and no result is lost. report: called with the trouble when it begins
    or changes, and with None when it is over.

    concurrency: number of lines answered at once, which must leave room in the engine for others.
    """

    def __init__(
        self,
        store: BatchStore,
        lines: LineRunner,
        *,
        concurrency: int,
        metrics: Metrics,
        report: Callable[[BatchTrouble | None], None],
    ) -> None:
        self._store = store
        self._lines = lines
        self._concurrency = concurrency
        self._metrics = metrics
        self._report = report
        # The kind of failure that delays batches.
        self._trouble: str | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to run batches, in the running event loop."""
        self._metrics.set_batches_delayed(False)
        # The previous process may have ended in trouble.
        self._report(None)
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop. Unfinished batches continue at the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        delay_s = MIN_RETRY_S
        is_swept = False
        while True:
            try:
                if not is_swept:
                    await self._do(self._store.files.sweep)
                    is_swept = True
                await self._run_next()
            except Exception as error:  # noqa: BLE001 (otherwise no batch would ever run again)
                self._note(error)
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, MAX_RETRY_S)
            else:
                delay_s = MIN_RETRY_S

    async def _run_next(self) -> None:
        """Run the oldest unfinished batch, or wait for one."""
        found = await self._do(self._store.next_batch)
        if found is None:
            await asyncio.sleep(POLL_S)
            return
        tenant, batch = found
        try:
            await self._run_batch(tenant, batch)
        except StorageError:
            raise
        except Exception as error:
            if isinstance(error, InvalidRequestError):
                reason = BatchError(error.code or "invalid_request", error.message, None, None)
            else:
                log.exception("a batch failed", batch=batch.id)
                reason = BatchError("server_error", "the server could not run it", None, None)
            await self._finish(tenant, batch, partial(_fail, errors=[reason]))

    async def _do[T](self, work: Callable[[], T]) -> T:
        """Call `work` on a worker thread, and retry it while the storage fails."""
        delay_s = MIN_RETRY_S
        while True:
            try:
                done = await asyncio.to_thread(work)
            except StorageError as error:
                self._note(error)
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, MAX_RETRY_S)
            else:
                self._note(None)
                return done

    def _note(self, error: Exception | None) -> None:
        """Count a failure. Log and report when trouble begins, changes or ends."""
        kind, reason = None, ""
        if isinstance(error, StorageError):
            kind, reason = error.fault.value, error.message
        elif error is not None:
            kind, reason = INTERNAL, "an internal error; the log has it"
        if kind is not None:
            self._metrics.observe_batch_failure(kind)
        if kind == self._trouble:
            return
        self._trouble = kind
        self._metrics.set_batches_delayed(kind is not None)
        if kind is None:
            log.info("batches go on")
            self._report(None)
        else:
            traceback = error if kind == INTERNAL else None
            log.error("batches are delayed", reason=str(error), exc_info=traceback)
            self._report(BatchTrouble(reason, int(time.time())))

    async def _run_batch(self, tenant: str, batch: Batch) -> None:
        if batch.status == "validating":
            batch = await self._validate(tenant, batch)
        if batch.status == "in_progress":
            batch = await self._answer_all(tenant, batch)
        if batch.status in {"in_progress", "finalizing", "cancelling"}:
            await self._finish(tenant, batch, _end)

    async def _validate(self, tenant: str, batch: Batch) -> Batch:
        """Validate every line before the first is answered."""
        try:
            total, errors = await self._do(partial(self._checked_lines, tenant, batch))
        except InvalidRequestError:
            total = 0
            errors = [BatchError("not_found", "the input file is not there", None, None)]
        if errors:
            return await self._finish(tenant, batch, partial(_fail, errors=errors))
        return await self._change(batch, partial(_begin, total=total))

    def _checked_lines(self, tenant: str, batch: Batch) -> tuple[int, list[BatchError]]:
        file = self._store.files.get(tenant, batch.input_file_id)
        return check_lines(self._store.files.content(file.id), batch.endpoint)

    async def _answer_all(self, tenant: str, batch: Batch) -> Batch:
        """Answer the lines without a result, until all are answered or the batch must end."""
        lines = await self._do(partial(self._lines_to_do, batch))
        zero_s = await self._do(partial(self._store.zero_s, batch))

        def is_late() -> bool:
            # Not by the wall clock, because an adjustment of it could end the batch.
            return zero_s + time.monotonic() > batch.expires_at

        answers = self._lines.answer_all(
            () if is_late() else lines, concurrency=self._concurrency, tenant=tenant, batch=batch.id
        )
        async with aclosing(answers):
            async for results in answers:
                # Also without new results: the batch may have been cancelled.
                batch = await self._do(partial(self._store.add_results, batch.id, results))
                if batch.status != "in_progress" or is_late():
                    break
        if batch.status == "in_progress" and is_late():
            batch = await self._do(partial(self._expire, batch))
        return batch

    def _lines_to_do(self, batch: Batch) -> Iterator[Numbered]:
        done = self._store.lines_done(batch.id)
        lines = read_lines(self._store.files.content(batch.input_file_id))
        return (entry for entry in lines if entry[0] not in done)

    def _expire(self, batch: Batch) -> Batch:
        """Mark every line without a result as expired."""
        late = LineError("batch_expired", "the batch expired before this request was answered")
        results = [
            (number, result_of(line, error=late)) for number, line in self._lines_to_do(batch)
        ]
        return self._store.add_results(batch.id, results, _expired if results else None)

    async def _finish(self, tenant: str, batch: Batch, change: Callable[[Batch], None]) -> Batch:
        """End a batch, and write its results to its files, also if it failed."""
        return await self._do(partial(self._store.finish, tenant, batch.id, change))

    async def _change(self, batch: Batch, change: Callable[[Batch], None]) -> Batch:
        return await self._do(partial(self._store.change, batch.id, change))


def _begin(batch: Batch, *, total: int) -> None:
    if batch.status == "validating":
        batch.status = "in_progress"
        batch.in_progress_at = int(time.time())
        batch.request_counts.total = total


def _fail(batch: Batch, *, errors: list[BatchError]) -> None:
    batch.status = "failed"
    batch.failed_at = int(time.time())
    batch.errors = BatchErrors(errors)


def _expired(batch: Batch) -> None:
    if batch.status == "in_progress":
        batch.status = "finalizing"
        batch.expired_at = int(time.time())


def _end(batch: Batch) -> None:
    """Set the final state of a batch whose results are in its files."""
    now = int(time.time())
    batch.finalizing_at = now
    if batch.status == "cancelling":
        batch.status, batch.cancelled_at = "cancelled", now
    elif batch.expired_at is not UNSET:
        batch.status = "expired"
    else:
        batch.status, batch.completed_at = "completed", now
