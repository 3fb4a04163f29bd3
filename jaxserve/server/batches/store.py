"""Store of batches, which survive a restart."""

import contextlib
import fcntl
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import msgspec
from msgspec import UNSET

from jaxserve.database import Database, storage_faults
from jaxserve.errors import ConfigError, InvalidRequestError
from jaxserve.server.batches import file_store
from jaxserve.server.batches.file_store import (
    FileStore,
    boot_id,
    described,
    insert_file,
    not_found,
    set_clock,
)
from jaxserve.server.batches.schema import WINDOW_S, Batch, File, Result

UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")
# Number of results to read at a time, so that writing a file does not block other calls.
PAGE_ROWS = 1000
DATABASE = "batches.sqlite"
SCHEMA = f"""
{file_store.SCHEMA}
CREATE TABLE IF NOT EXISTS batches (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    status TEXT NOT NULL,
    batch BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS results (
    batch_id TEXT NOT NULL,
    line INTEGER NOT NULL,
    is_error INTEGER NOT NULL,
    result BLOB NOT NULL,
    PRIMARY KEY (batch_id, line)
) WITHOUT ROWID;
"""


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Lock a folder, so that no other server runs its batches.

    Raises ConfigError if another server has locked it or the folder is invalid, and StorageError if
    its database is corrupt.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"batch_dir must be a folder to write to, got {str(folder)!r} ({error.strerror})"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"batch_dir {str(folder)!r} is in use by another server") from error
        # The supervisor reports it once; each API process would report it again.
        Database(folder / DATABASE, SCHEMA).check()
        yield


class BatchStore:
    """Batches of one folder and the results of their lines, beside the `files` that they read.

    Tenants, threads and errors are as in FileStore. max_batches: limit of stored batches, in any
    state. max_bytes: limit of all files together.
    """

    def __init__(self, folder: Path, *, max_bytes: int, max_batches: int) -> None:
        with storage_faults(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._database = Database(folder / DATABASE, SCHEMA)
        self.files = FileStore(folder / "files", self._database, max_bytes=max_bytes)
        self._max_batches = max_batches

    def rename_tenants(self, names: Mapping[str, str]) -> None:
        """Move stored objects to the tenants' new names."""
        if not names:
            return
        with self._database.transaction() as connection:
            for old, new in names.items():
                connection.execute("UPDATE files SET owner = ? WHERE owner = ?", (new, old))
                connection.execute("UPDATE batches SET owner = ? WHERE owner = ?", (new, old))

    def add_batch(self, tenant: str, batch: Batch) -> None:
        """Add a batch. If there are too many, the oldest finished ones are deleted."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO batches VALUES (?, ?, ?, ?)",
                (batch.id, tenant, batch.status, msgspec.json.encode(batch)),
            )
            set_clock(connection, batch.id, time.time())
            (count,) = connection.execute("SELECT count(*) FROM batches").fetchone()
            if count > self._max_batches:
                cursor = connection.execute(
                    "DELETE FROM batches WHERE rowid IN (SELECT rowid FROM batches WHERE status IN"
                    " ('completed', 'failed', 'expired', 'cancelled') ORDER BY rowid LIMIT 1)"
                )
                if cursor.rowcount == 0:
                    raise InvalidRequestError(
                        f"the server keeps {self._max_batches} batches at most: wait for one",
                        param=None,
                        code="too_many_batches",
                    )

    def batch(self, tenant: str, batch_id: str) -> Batch:
        """Return a batch."""
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT batch FROM batches WHERE id = ? AND owner = ?", (batch_id, tenant)
            ).fetchone()
        if row is None:
            raise not_found("batch", batch_id, "batch_id")
        return msgspec.json.decode(row["batch"], type=Batch)

    def batches(self, tenant: str) -> list[Batch]:
        """Return the batches of a tenant, newest first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT batch FROM batches WHERE owner = ? ORDER BY rowid DESC", (tenant,)
            ).fetchall()
        return [msgspec.json.decode(row["batch"], type=Batch) for row in rows]

    def next_batch(self) -> tuple[str, Batch] | None:
        """Return the oldest unfinished batch, with its tenant."""
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT owner, batch FROM batches WHERE status IN (?, ?, ?, ?) ORDER BY rowid",
                UNFINISHED,
            ).fetchone()
        return (
            None if row is None else (row["owner"], msgspec.json.decode(row["batch"], type=Batch))
        )

    def change(self, batch_id: str, change: Callable[[Batch], None]) -> Batch:
        """Change a batch in one transaction, and return it."""
        with self._database.transaction() as connection:
            return _change(connection, batch_id, change)

    def zero_s(self, batch: Batch) -> float:
        """Return the UNIX time of the monotonic clock's zero, as recorded for a batch.

        Compare its `expires_at` with that clock, so that adjustments of the wall clock have no
        effect. After a reboot, the wall clock counts.
        """
        with self._database.transaction() as connection:
            row = connection.execute(
                "SELECT zero_s FROM clocks WHERE id = ? AND boot = ?", (batch.id, boot_id())
            ).fetchone()
            if row is None:
                now_s = max(time.time(), batch.expires_at - WINDOW_S)
                return set_clock(connection, batch.id, now_s)
            zero_s: float = row["zero_s"]
            return zero_s

    def finish(self, tenant: str, batch_id: str, change: Callable[[Batch], None]) -> Batch:
        """Write the results of a batch to its output and error files, then change the batch."""
        with (
            self._results_file(batch_id, "output", is_error=False) as output,
            self._results_file(batch_id, "error", is_error=True) as errors,
            self._database.transaction() as connection,
        ):

            def finish(batch: Batch) -> None:
                batch.output_file_id = UNSET if output is None else output.id
                batch.error_file_id = UNSET if errors is None else errors.id
                change(batch)

            for file in filter(None, (output, errors)):
                insert_file(connection, tenant, file)
            connection.execute("DELETE FROM results WHERE batch_id = ?", (batch_id,))
            connection.execute("DELETE FROM clocks WHERE id = ?", (batch_id,))
            return _change(connection, batch_id, finish)

    # Results

    def add_results(
        self,
        batch_id: str,
        results: Sequence[tuple[int, Result]],
        change: Callable[[Batch], None] | None = None,
    ) -> Batch:
        """Store the results of some lines, and return the batch with its new counts.

        An existing result is kept. change: further changes of the batch.
        """
        with self._database.transaction() as connection:

            def insert(*, is_error: bool) -> int:
                return connection.executemany(
                    "INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?)",
                    [
                        (batch_id, line, is_error, msgspec.json.encode(result))
                        for line, result in results
                        if result.is_error == is_error
                    ],
                ).rowcount

            num_completed, num_failed = insert(is_error=False), insert(is_error=True)

            def count(batch: Batch) -> None:
                batch.request_counts.completed += max(num_completed, 0)
                batch.request_counts.failed += max(num_failed, 0)
                if change is not None:
                    change(batch)

            return _change(connection, batch_id, count)

    def lines_done(self, batch_id: str) -> set[int]:
        """Return the numbers of the lines with a result."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT line FROM results WHERE batch_id = ?", (batch_id,)
            ).fetchall()
        return {row["line"] for row in rows}

    @contextlib.contextmanager
    def _results_file(self, batch_id: str, kind: str, *, is_error: bool) -> Iterator[File | None]:
        """Yield a file with the results in the order of their lines; None if there are none."""
        with self._database.reading() as connection:
            lifetime_s = _batch(connection, batch_id).output_expires_after_s
        lines = self._results(batch_id, is_error=is_error)
        first = next(lines, None)
        if first is None:
            yield None
            return
        with self.files.new_content() as (file_id, target):
            target.writelines(chain([first], lines))
            yield described(
                file_id,
                target,
                filename=f"{batch_id}_{kind}.jsonl",
                purpose="batch_output",
                lifetime_s=None if lifetime_s is UNSET else lifetime_s,
            )

    def _results(self, batch_id: str, *, is_error: bool) -> Iterator[bytes]:
        last = 0
        while True:
            with self._database.reading() as connection:
                rows = connection.execute(
                    "SELECT line, result FROM results"
                    " WHERE batch_id = ? AND is_error = ? AND line > ? ORDER BY line LIMIT ?",
                    (batch_id, is_error, last, PAGE_ROWS),
                ).fetchall()
            if not rows:
                return
            last = rows[-1]["line"]
            yield from (row["result"] + b"\n" for row in rows)


def _batch(connection: sqlite3.Connection, batch_id: str) -> Batch:
    row = connection.execute("SELECT batch FROM batches WHERE id = ?", (batch_id,)).fetchone()
    return msgspec.json.decode(row["batch"], type=Batch)


def _change(
    connection: sqlite3.Connection, batch_id: str, change: Callable[[Batch], None]
) -> Batch:
    batch = _batch(connection, batch_id)
    change(batch)
    connection.execute(
        "UPDATE batches SET status = ?, batch = ? WHERE id = ?",
        (batch.status, msgspec.json.encode(batch), batch_id),
    )
    return batch
