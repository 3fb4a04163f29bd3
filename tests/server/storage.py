"""Storage that fails: locked databases, full disks, and corrupt files."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from jaxserve.server import ServerConfig

FOREVER = 10 * 365 * 24 * 3600


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a database's write lock, as another process would."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@contextmanager
def full(monkeypatch: pytest.MonkeyPatch, path: Path) -> Iterator[None]:
    """Let a database have no room for another row, as on a disk that is full."""
    connect = sqlite3.connect

    def limited(*args: Any, **settings: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **settings)
        connection.execute(f"PRAGMA max_page_count = {count}")
        return connection

    with closing(connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS filler (x BLOB)")
        (count,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {count}")
        for size in (2000, 100, 10):
            with suppress(sqlite3.OperationalError):
                while True:
                    connection.execute("INSERT INTO filler VALUES (zeroblob(?))", (size,))
    with monkeypatch.context() as patch:
        patch.setattr("sqlite3.connect", limited)
        yield


def trouble(http: TestClient) -> Any:
    response = http.get("/health")
    assert response.status_code == 200
    return response.json().get("batches")


def sample(http: TestClient, name: str) -> float:
    rows = http.get("/metrics").text.splitlines()
    return sum(float(row.split()[-1]) for row in rows if row.startswith(name))


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "files").iterdir())


def config(folder: Path, **fields: Any) -> ServerConfig:
    return ServerConfig(port=0, batch_dir=str(folder), **fields)
