"""SQLite databases that the processes of a server share."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

# Transactions take milliseconds; who waits so long waits for a process that is stuck.
LOCK_TIMEOUT_S = 10.0


class Database:
    """One database file. Calls block for milliseconds: they are for worker threads."""

    def __init__(self, path: Path, schema: str) -> None:
        self._path = path
        with closing(self._connect()) as connection:
            # Readers do not wait for writers. A process that dies loses nothing it had committed.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(schema)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run statements as one, alone among all processes; an exception undoes them."""
        with closing(self._connect()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection
