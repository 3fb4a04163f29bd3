"""Files and batches on disk, where a restart finds them again."""

import contextlib
import fcntl
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import msgspec
from msgspec import UNSET

from jaxserve.errors import ConfigError, InvalidRequestError
from jaxserve.server.database import Database
from jaxserve.server.protocol.batches import Batch, File, Result
from jaxserve.server.protocol.parsing import show

UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")
# Results are read so many at a time, so that nobody waits for a whole file to be written.
PAGE_ROWS = 1000
UNCLAIMED_S = 3600.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    purpose TEXT NOT NULL,
    expires_at INTEGER,
    file BLOB NOT NULL
);
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
    """Keep other servers from running the batches of a folder; raises ConfigError if one does."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise ConfigError(f"batch_dir must be a folder to write to, got {str(folder)!r}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"batch_dir {str(folder)!r} is in use by another server") from error
        yield


class BatchStore:
    """The files and batches of one folder, shared by the processes of a server.

    What files hold lies in files of the folder, put there whole or not at all; everything else is
    in a database. owner: who may see something; another's does not exist. Calls are for worker
    threads. Those that name something raise InvalidRequestError (404) when it is not there.

    max_bytes: of all files together, max_batches: that are kept, in whatever state.
    """

    def __init__(self, folder: Path, *, max_bytes: int, max_batches: int) -> None:
        self._folder = folder / "files"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._database = Database(folder / "batches.sqlite", SCHEMA)
        self._max_bytes = max_bytes
        self._max_batches = max_batches

    # Files

    def add_file(
        self,
        owner: str,
        content: Iterable[bytes],
        *,
        filename: str,
        purpose: str,
        lifetime_s: int | None,
    ) -> File:
        """Keep what a client sends; raises InvalidRequestError when there is no room."""
        self._forget_expired()
        file = self._write(content, filename=filename, purpose=purpose, lifetime_s=lifetime_s)
        with self._database.transaction() as connection:
            (used,) = connection.execute("SELECT total(bytes) FROM files").fetchone()
            if used + file.bytes <= self._max_bytes:
                _insert(connection, owner, file)
                return file
        self.path(file.id).unlink()
        raise InvalidRequestError(
            f"the server keeps files of {self._max_bytes} bytes at most, of which {int(used)} are"
            f" in use, got {file.bytes}: delete some",
            param="file",
            code="storage_full",
        )

    def file(self, owner: str, file_id: str, *, param: str | None = None) -> File:
        """Return a file. param: the field that names it, if it is not the path."""
        self._forget_expired()
        with self._database.transaction() as connection:
            row = connection.execute(
                "SELECT file FROM files WHERE id = ? AND owner = ?", (file_id, owner)
            ).fetchone()
        if row is None:
            raise _not_found("file", file_id, param or "file_id")
        return msgspec.json.decode(row["file"], type=File)

    def path(self, file_id: str) -> Path:
        """Where the content of a file is; ids are ours, and name nothing else."""
        return self._folder / file_id

    def files(self, owner: str, *, purpose: str | None) -> list[File]:
        """Return the files of an owner, oldest first."""
        self._forget_expired()
        with self._database.transaction() as connection:
            rows = connection.execute(
                "SELECT file FROM files WHERE owner = ? AND purpose = coalesce(?, purpose)"
                " ORDER BY rowid",
                (owner, purpose),
            ).fetchall()
        return [msgspec.json.decode(row["file"], type=File) for row in rows]

    def delete_file(self, owner: str, file_id: str) -> None:
        """Delete a file. A batch that reads it fails."""
        with self._database.transaction() as connection:
            cursor = connection.execute(
                "DELETE FROM files WHERE id = ? AND owner = ?", (file_id, owner)
            )
        if cursor.rowcount == 0:
            raise _not_found("file", file_id, "file_id")
        self.path(file_id).unlink(missing_ok=True)

    def _write(
        self, content: Iterable[bytes], *, filename: str, purpose: str, lifetime_s: int | None
    ) -> File:
        created_at = int(time.time())
        file_id = f"file-{uuid.uuid4().hex}"
        unfinished = self._folder / f"{file_id}.part"
        with unfinished.open("wb") as target:
            for piece in content:
                target.write(piece)
            num_bytes = target.tell()
        unfinished.replace(self.path(file_id))
        return File(
            id=file_id,
            bytes=num_bytes,
            created_at=created_at,
            expires_at=UNSET if lifetime_s is None else created_at + lifetime_s,
            filename=filename,
            purpose=purpose,
        )

    def _forget_expired(self) -> None:
        with self._database.transaction() as connection:
            rows = connection.execute(
                "DELETE FROM files WHERE expires_at < ? RETURNING id", (time.time(),)
            ).fetchall()
        for row in rows:
            self.path(row["id"]).unlink(missing_ok=True)

    # Batches

    def add_batch(self, owner: str, batch: Batch) -> None:
        """Keep a batch that is to be run; the oldest finished ones go when there are too many."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO batches VALUES (?, ?, ?, ?)",
                (batch.id, owner, batch.status, msgspec.json.encode(batch)),
            )
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

    def batch(self, owner: str, batch_id: str) -> Batch:
        """Return a batch."""
        with self._database.transaction() as connection:
            row = connection.execute(
                "SELECT batch FROM batches WHERE id = ? AND owner = ?", (batch_id, owner)
            ).fetchone()
        if row is None:
            raise _not_found("batch", batch_id, "batch_id")
        return msgspec.json.decode(row["batch"], type=Batch)

    def batches(self, owner: str) -> list[Batch]:
        """Return the batches of an owner, newest first."""
        with self._database.transaction() as connection:
            rows = connection.execute(
                "SELECT batch FROM batches WHERE owner = ? ORDER BY rowid DESC", (owner,)
            ).fetchall()
        return [msgspec.json.decode(row["batch"], type=Batch) for row in rows]

    def next_batch(self) -> tuple[str, Batch] | None:
        """Return the oldest batch that is not finished, and its owner."""
        with self._database.transaction() as connection:
            row = connection.execute(
                "SELECT owner, batch FROM batches WHERE status IN (?, ?, ?, ?) ORDER BY rowid",
                UNFINISHED,
            ).fetchone()
        return (
            None if row is None else (row["owner"], msgspec.json.decode(row["batch"], type=Batch))
        )

    def change(self, batch_id: str, change: Callable[[Batch], None]) -> Batch:
        """Change a batch as one step, and return it."""
        with self._database.transaction() as connection:
            return _change(connection, batch_id, change)

    def finish(self, owner: str, batch_id: str, change: Callable[[Batch], None]) -> Batch:
        """Put the results of a batch into its output and error files, and change it at the end."""
        output = self._write_results(batch_id, "output", is_error=False)
        errors = self._write_results(batch_id, "error", is_error=True)

        def finish(batch: Batch) -> None:
            batch.output_file_id = UNSET if output is None else output.id
            batch.error_file_id = UNSET if errors is None else errors.id
            change(batch)

        with self._database.transaction() as connection:
            for file in filter(None, (output, errors)):
                _insert(connection, owner, file)
            connection.execute("DELETE FROM results WHERE batch_id = ?", (batch_id,))
            return _change(connection, batch_id, finish)

    # Results

    def add_results(self, batch_id: str, results: Sequence[tuple[int, Result]]) -> Batch:
        """Keep what became of some lines, and return the batch with its new counts."""
        num_failed = sum(result.is_error for _, result in results)

        def count(batch: Batch) -> None:
            batch.request_counts.completed += len(results) - num_failed
            batch.request_counts.failed += num_failed

        with self._database.transaction() as connection:
            connection.executemany(
                "INSERT INTO results VALUES (?, ?, ?, ?)",
                [
                    (batch_id, line, result.is_error, msgspec.json.encode(result))
                    for line, result in results
                ],
            )
            return _change(connection, batch_id, count)

    def lines_done(self, batch_id: str) -> set[int]:
        """Return the lines that have a result."""
        with self._database.transaction() as connection:
            rows = connection.execute(
                "SELECT line FROM results WHERE batch_id = ?", (batch_id,)
            ).fetchall()
        return {row["line"] for row in rows}

    def sweep(self) -> None:
        """Remove what a server that was killed left unfinished: contents that no file claims."""
        with self._database.transaction() as connection:
            known = {row["id"] for row in connection.execute("SELECT id FROM files")}
        for path in self._folder.iterdir():
            # Others may be just about to be claimed.
            if path.name not in known and time.time() - path.stat().st_mtime > UNCLAIMED_S:
                path.unlink(missing_ok=True)

    def _write_results(self, batch_id: str, kind: str, *, is_error: bool) -> File | None:
        """Write a file of results, in the order of their lines; None if there are none."""
        with self._database.transaction() as connection:
            batch = _batch(connection, batch_id)
        lines = self._results(batch_id, is_error=is_error)
        first = next(lines, None)
        if first is None:
            return None
        lifetime_s = batch.output_expires_after_s
        return self._write(
            chain([first], lines),
            filename=f"{batch_id}_{kind}.jsonl",
            purpose="batch_output",
            lifetime_s=None if lifetime_s is UNSET else lifetime_s,
        )

    def _results(self, batch_id: str, *, is_error: bool) -> Iterator[bytes]:
        last = 0
        while True:
            with self._database.transaction() as connection:
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


def _insert(connection: sqlite3.Connection, owner: str, file: File) -> None:
    expires_at = None if file.expires_at is UNSET else file.expires_at
    connection.execute(
        "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)",
        (file.id, owner, file.bytes, file.purpose, expires_at, msgspec.json.encode(file)),
    )


def _not_found(kind: str, name: str, param: str) -> InvalidRequestError:
    error = InvalidRequestError(
        f"there is no {kind} {show(name)} here", param=param, code="not_found"
    )
    error.status = 404
    return error
