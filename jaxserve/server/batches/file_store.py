"""Store of files, which survive a restart."""

import contextlib
import fcntl
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import IO

import msgspec
from msgspec import UNSET

from jaxserve.database import Database, storage_faults
from jaxserve.errors import InvalidRequestError, StorageError, StorageFault
from jaxserve.frontend.schema.parsing import show
from jaxserve.server.batches.schema import File

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# owner: the tenant; the column is named as in the databases of earlier versions.
SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    purpose TEXT NOT NULL,
    expires_at INTEGER,
    file BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS clocks (
    id TEXT PRIMARY KEY,
    boot TEXT,
    zero_s REAL NOT NULL
) WITHOUT ROWID;
"""

# Rows of this boot expire by its clock, older ones by the wall clock.
EXPIRED = """
SELECT files.id FROM files LEFT JOIN clocks USING (id)
WHERE expires_at < CASE WHEN boot = ? THEN zero_s + ? ELSE ? END
"""


@cache
def boot_id() -> str | None:
    """Return the id of this boot of the machine; None if the system has none.

    Within one boot, all processes share the monotonic clock, which is never adjusted. Files expire
    by it, starting from the wall clock at first use. After a reboot, only the wall clock is left.
    """
    try:
        return BOOT_ID.read_text("ascii").strip()
    except OSError:
        return None


class FileStore:
    """Files of one folder, shared by the processes of a server.

    Contents are files in the folder; everything else is in a database. A file without a row in it
    does not exist. tenant: owner; files of other tenants do not exist for it. Call the methods on
    worker threads. Methods that name a file raise InvalidRequestError (404) if it does not exist,
    and all raise StorageError if the disk or the database cannot be used.

    max_bytes: limit of all files together.
    """

    def __init__(self, folder: Path, database: Database, *, max_bytes: int) -> None:
        self._folder = folder
        with storage_faults(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._database = database
        self._max_bytes = max_bytes

    def check_room(self, num_bytes: int) -> None:
        """Raise StorageError unless there is room for a file of `num_bytes`."""
        self._forget_expired()
        with self._database.reading() as connection:
            self._check_room(connection, num_bytes)

    def add(
        self,
        tenant: str,
        content: Iterable[bytes],
        *,
        filename: str,
        purpose: str,
        lifetime_s: int | None,
    ) -> File:
        """Store an uploaded file. Raises StorageError and stores nothing if there is no room."""
        self._forget_expired()
        with self.new_content() as (file_id, target):
            num_bytes = 0
            for piece in content:
                num_bytes += len(piece)
                with self._database.reading() as connection:
                    self._check_room(connection, num_bytes)
                target.write(piece)
            file = described(
                file_id, target, filename=filename, purpose=purpose, lifetime_s=lifetime_s
            )
            with self._database.transaction() as connection:
                self._check_room(connection, num_bytes)
                insert_file(connection, tenant, file)
        return file

    def get(self, tenant: str, file_id: str, *, param: str | None = None) -> File:
        """Return a file. param: request field that names it; None for the path."""
        self._forget_expired()
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT file FROM files WHERE id = ? AND owner = ?", (file_id, tenant)
            ).fetchone()
        if row is None:
            raise not_found("file", file_id, param or "file_id")
        return msgspec.json.decode(row["file"], type=File)

    def path(self, file_id: str) -> Path:
        """Path of a file's content. Ids are generated here, so they cannot point elsewhere."""
        return self._folder / file_id

    def content(self, file_id: str) -> Path:
        """Return the path of an existing file's content."""
        path = self.path(file_id)
        with storage_faults(path):
            self._folder.stat()  # without it, the content is unknown
            if not path.exists():
                raise not_found("file", file_id, "file_id")
        return path

    def all_of(self, tenant: str, *, purpose: str | None) -> list[File]:
        """Return the files of a tenant, oldest first."""
        self._forget_expired()
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT file FROM files WHERE owner = ? AND purpose = coalesce(?, purpose)"
                " ORDER BY rowid",
                (tenant, purpose),
            ).fetchall()
        return [msgspec.json.decode(row["file"], type=File) for row in rows]

    def delete(self, tenant: str, file_id: str) -> None:
        """Delete a file. A batch that reads it will fail."""
        with self._database.transaction() as connection:
            cursor = connection.execute(
                "DELETE FROM files WHERE id = ? AND owner = ?", (file_id, tenant)
            )
            if cursor.rowcount == 0:
                raise not_found("file", file_id, "file_id")
            connection.execute("DELETE FROM clocks WHERE id = ?", (file_id,))
        self._remove_content(file_id)

    @contextlib.contextmanager
    def new_content(self) -> Iterator[tuple[str, IO[bytes]]]:
        """Yield the id of a new file and an open file for its content; an exception removes it.

        The file is locked as long as its writer lives, so that `sweep` leaves it alone.
        """
        file_id = f"file-{uuid.uuid4().hex}"
        path = self.path(file_id)
        with storage_faults(path), contextlib.ExitStack() as stack:
            # In a transaction, so that no sweep finds the file before it is locked.
            with self._database.transaction():
                target = stack.enter_context(path.open("xb"))
                fcntl.flock(target, fcntl.LOCK_EX)
            try:
                yield file_id, target
            except BaseException:
                path.unlink(missing_ok=True)
                raise

    def sweep(self) -> None:
        """Remove the unfinished files of processes that were killed."""
        with storage_faults(self._folder), self._database.transaction() as connection:
            known = {row["id"] for row in connection.execute("SELECT id FROM files")}
            for path in [path for path in self._folder.iterdir() if path.name not in known]:
                with contextlib.suppress(FileNotFoundError), path.open("rb") as content:
                    try:
                        fcntl.flock(content, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        continue  # its writer is alive
                    path.unlink()

    def _check_room(self, connection: sqlite3.Connection, num_bytes: int) -> None:
        (used,) = connection.execute("SELECT total(bytes) FROM files").fetchone()
        if used + num_bytes > self._max_bytes:
            raise StorageError(
                StorageFault.FULL,
                f"the server keeps files of {self._max_bytes} bytes at most, of which {int(used)}"
                f" are in use, got at least {num_bytes} more: delete some",
            )

    def _forget_expired(self) -> None:
        now = (boot_id(), time.monotonic(), time.time())
        with self._database.reading() as connection:
            if connection.execute(EXPIRED, now).fetchone() is None:
                return
        with self._database.transaction() as connection:
            names = [(row["id"],) for row in connection.execute(EXPIRED, now).fetchall()]
            for table in ("files", "clocks"):
                connection.executemany(f"DELETE FROM {table} WHERE id = ?", names)  # noqa: S608
        for (name,) in names:
            self._remove_content(name)

    def _remove_content(self, file_id: str) -> None:
        path = self.path(file_id)
        with storage_faults(path):
            path.unlink(missing_ok=True)


def described(
    file_id: str, content: IO[bytes], *, filename: str, purpose: str, lifetime_s: int | None
) -> File:
    """Return the file of a written content, after flushing it to the kernel."""
    content.flush()
    created_at = int(time.time())
    return File(
        id=file_id,
        bytes=content.tell(),
        created_at=created_at,
        expires_at=UNSET if lifetime_s is None else created_at + lifetime_s,
        filename=filename,
        purpose=purpose,
    )


def insert_file(connection: sqlite3.Connection, tenant: str, file: File) -> None:
    """Register a written content for a tenant."""
    expires_at = None if file.expires_at is UNSET else file.expires_at
    connection.execute(
        "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)",
        (file.id, tenant, file.bytes, file.purpose, expires_at, msgspec.json.encode(file)),
    )
    if expires_at is not None:
        set_clock(connection, file.id, time.time())


def set_clock(connection: sqlite3.Connection, name: str, now_s: float) -> float:
    """Record that the UNIX time is `now_s`, and count from there by the clock of this boot.

    Returns the UNIX time of that clock's zero.
    """
    zero_s = now_s - time.monotonic()
    connection.execute("INSERT OR REPLACE INTO clocks VALUES (?, ?, ?)", (name, boot_id(), zero_s))
    return zero_s


def not_found(kind: str, name: str, param: str) -> InvalidRequestError:
    """Return the error for a missing file or batch. param: request field that names it."""
    error = InvalidRequestError(
        f"there is no {kind} {show(name)} here", param=param, code="not_found"
    )
    error.status = 404
    return error
