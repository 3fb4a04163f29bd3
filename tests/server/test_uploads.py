"""Uploads that find no room, and files that killed processes left."""

import errno
import fcntl
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from jaxserve.errors import StorageError, StorageFault
from jaxserve.server.batches.store import BatchStore
from tests.server.storage import config, contents, full
from tests.server.world import World


def send(http: TestClient, content: bytes) -> Any:
    files = {"file": ("a", BytesIO(content))}
    return http.post("/v1/files", files=files, data={"purpose": "batch"})


def error_of(response: Any) -> Any:
    assert response.status_code == 507, response.text
    assert response.headers["x-should-retry"] == "false"
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "storage_full")
    return error


def test_an_upload_that_finds_no_room_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []
    with (
        World(config=config(tmp_path)) as world,
        world.http() as http,
        full(monkeypatch, tmp_path / "batches.sqlite"),
    ):
        # A page of the database has room for a few.
        while (response := send(http, b"x" * 5000)).status_code == 200:
            kept.append(response.json()["id"])
            assert len(kept) < 100
        assert error_of(response)["message"] == "the server's storage is full"
        assert contents(tmp_path) == sorted(kept)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_fills_up_while_a_file_is_written_is_told(tmp_path: Path, number: int) -> None:
    store = BatchStore(tmp_path, max_bytes=10**9, max_batches=9).files

    def content() -> Iterator[bytes]:
        yield b"a"
        raise OSError(number, "the disk says no")

    with pytest.raises(StorageError) as caught:
        store.add("", content(), filename="", purpose="batch", lifetime_s=None)
    assert caught.value.fault is StorageFault.FULL
    assert contents(tmp_path) == []


LIMITED = """
import resource, sys
from pathlib import Path
from jaxserve.errors import StorageError
from jaxserve.server.batches.store import BatchStore

store = BatchStore(Path(sys.argv[1]), max_bytes=10**9, max_batches=9).files
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    store.add("", [bytes(2**18)] * 8, filename="", purpose="batch", lifetime_s=None)
except StorageError as error:
    print(error.fault, error.message)
"""


def test_the_kernel_refuses_a_file_and_nothing_is_left(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "full the server's storage is full\n"
    assert contents(tmp_path) == []


def test_the_quota_is_looked_at_before_and_while_a_file_comes(tmp_path: Path) -> None:
    limit = 2**21
    with World(config=config(tmp_path, max_batch_bytes=limit)) as world, world.http() as http:
        error = error_of(send(http, b"x" * (limit + 2**20)))
        assert f"{limit} bytes at most" in error["message"]
        assert contents(tmp_path) == []
        store = world.app.state.server.files
        read: list[int] = []

        def endless() -> Iterator[bytes]:
            while True:
                read.append(2**20)
                yield bytes(2**20)

        with pytest.raises(StorageError, match="bytes at most"):
            store.add("", endless(), filename="", purpose="batch", lifetime_s=None)
        assert len(read) == 3
        assert contents(tmp_path) == []


def test_what_killed_processes_left_is_swept_at_once_and_nothing_else(tmp_path: Path) -> None:
    store = BatchStore(tmp_path, max_bytes=10**9, max_batches=9).files
    fields: dict[str, Any] = {"filename": "", "purpose": "batch", "lifetime_s": None}
    kept = store.add("", [b"kept"], **fields)
    (tmp_path / "files" / "file-1.part").write_bytes(b"left by an older version")
    (tmp_path / "files" / "file-2").write_bytes(b"left")
    with (tmp_path / "files" / "file-3").open("wb") as written:
        fcntl.flock(written, fcntl.LOCK_EX)
        store.sweep()
        assert contents(tmp_path) == sorted([kept.id, "file-3"])
    store.sweep()
    assert contents(tmp_path) == [kept.id]
