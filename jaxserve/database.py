"""SQLite databases shared by the processes of a server, and errors of storage."""

import errno
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from jaxserve.errors import StorageError, StorageFault

# Transactions take milliseconds, so a longer wait means that another process is stuck.
LOCK_TIMEOUT_S = 10.0
# Message for clients, and advice for the operator, by fault.
MESSAGES: Mapping[StorageFault, tuple[str, str]] = {
    StorageFault.FULL: ("the server's storage is full", "make room on its disk"),
    StorageFault.LOCKED: (
        "the server's storage is locked by another process",
        "end the process that holds the lock",
    ),
    StorageFault.CORRUPT: (
        "the server's database is corrupt",
        "move it away to begin with an empty one, or restore a copy",
    ),
    StorageFault.READ_ONLY: (
        "the server's storage is read-only",
        "let the server's user write it",
    ),
    StorageFault.UNAVAILABLE: (
        "the server's storage cannot be read or written",
        "check that it is there and that the server's user may use it",
    ),
}
FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
READ_ONLY_ERRNOS = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
# By SQLite's primary result code.
FAULTS: Mapping[int, StorageFault] = {
    sqlite3.SQLITE_FULL: StorageFault.FULL,
    sqlite3.SQLITE_BUSY: StorageFault.LOCKED,
    sqlite3.SQLITE_LOCKED: StorageFault.LOCKED,
    sqlite3.SQLITE_PROTOCOL: StorageFault.LOCKED,
    sqlite3.SQLITE_CORRUPT: StorageFault.CORRUPT,
    sqlite3.SQLITE_NOTADB: StorageFault.CORRUPT,
    sqlite3.SQLITE_READONLY: StorageFault.READ_ONLY,
}
# SQLite says only "disk I/O error" when a file cannot grow.
FULL_CODES = frozenset(
    {
        sqlite3.SQLITE_IOERR_WRITE,
        sqlite3.SQLITE_IOERR_TRUNCATE,
        sqlite3.SQLITE_IOERR_SHMSIZE,
        sqlite3.SQLITE_IOERR_FSYNC,
    }
)


def storage_error(error: OSError | sqlite3.DatabaseError, path: Path) -> StorageError:
    """Return the StorageError for an error of the file at `path`."""
    fault = StorageFault.UNAVAILABLE
    if isinstance(error, OSError):
        words = error.strerror or type(error).__name__
        if error.errno in FULL_ERRNOS:
            fault = StorageFault.FULL
        elif error.errno in READ_ONLY_ERRNOS:
            fault = StorageFault.READ_ONLY
    else:
        words = str(error)
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        fault = StorageFault.FULL if code in FULL_CODES else FAULTS.get(code & 0xFF, fault)
    message, advice = MESSAGES[fault]
    return StorageError(fault, message, detail=f"{path} cannot be used ({words}): {advice}")


@contextmanager
def storage_faults(path: Path) -> Iterator[None]:
    """Convert OSErrors raised inside the block to StorageErrors that name `path`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error


class Database:
    """A database file. Its methods block for milliseconds, so call them on worker threads.

    All methods, and the constructor, raise StorageError if the file cannot be used.
    """

    def __init__(self, path: Path, schema: str) -> None:
        self._path = path
        self._watch: sqlite3.Connection | None = None
        self._inode = 0
        with self._faults(), closing(self._connect(mode="rwc")) as connection:
            # WAL: readers do not wait for writers, and a crash loses no committed transaction.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(schema)

    def check(self) -> None:
        """Read the whole file. Raises StorageError if it is corrupt."""
        with self._faults(), closing(self._connect()) as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                error = sqlite3.DatabaseError(found.splitlines()[-1])
                error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
                raise error

    def version(self) -> tuple[int, int]:
        """Return a value that changes with every change of the contents, by any process.

        Takes microseconds. Only one thread may call this.
        """
        with self._faults(), storage_faults(self._path):
            inode = self._path.stat().st_ino
            if self._watch is None or inode != self._inode:
                self._watch, self._inode = self._connect(check_same_thread=False), inode
            (version,) = self._watch.execute("PRAGMA data_version").fetchone()
        return inode, version

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Run read-only statements on one snapshot, without waiting for writers."""
        with self._faults(), closing(self._connect()) as connection:
            connection.execute("BEGIN")
            yield connection

    @contextmanager
    def transaction(self, *, timeout_s: float | None = None) -> Iterator[sqlite3.Connection]:
        """Run statements in an exclusive transaction; an exception rolls it back.

        timeout_s: how long to wait for the lock, by default LOCK_TIMEOUT_S.
        """
        with self._faults(), closing(self._connect(timeout_s=timeout_s)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # SQLite has already rolled back if the disk is full.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _connect(
        self, *, mode: str = "rw", timeout_s: float | None = None, check_same_thread: bool = True
    ) -> sqlite3.Connection:
        """Open the file. Mode "rw" does not create it again if it was deleted."""
        url = f"file:{quote(str(self._path.absolute()))}?mode={mode}"
        connection = sqlite3.connect(
            url,
            timeout=LOCK_TIMEOUT_S if timeout_s is None else timeout_s,
            isolation_level=None,
            check_same_thread=check_same_thread,
            uri=True,
        )
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            # Others, such as IntegrityError, are bugs.
            if type(error) not in {sqlite3.DatabaseError, sqlite3.OperationalError}:
                raise
            raise storage_error(error, self._path) from error
