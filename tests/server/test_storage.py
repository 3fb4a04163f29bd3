"""Disks that are full, databases that are locked or corrupt, and clocks that jump."""

import sqlite3
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from io import BytesIO
from pathlib import Path

import pytest

from jaxserve.database import Database
from jaxserve.errors import StorageError, StorageFault
from jaxserve.server.batches.store import BatchStore, claimed
from jaxserve.server.responses.store import ResponseStore
from tests.server.storage import FOREVER, config, full, locked, sample, trouble
from tests.server.test_batches import begin, ended, line, results, serving, upload
from tests.server.test_uploads import send
from tests.server.world import World, wait_for


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxserve.database.LOCK_TIMEOUT_S", 0.05)
    for name in ("POLL_S", "MIN_RETRY_S", "MAX_RETRY_S"):
        monkeypatch.setattr(f"jaxserve.server.batches.runner.{name}", 0.02)


def test_batches_go_on_after_a_lock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with World(config=config(tmp_path), step_s=0.005) as world, serving(world) as http:
        batch_id = begin(http, *(line(str(n), max_tokens=20) for n in range(40)))
        with locked(tmp_path / "batches.sqlite"):
            wait_for(lambda: trouble(http) is not None)
            assert "locked" in trouble(http)["reason"]
            assert abs(trouble(http)["since"] - time.time()) < 60
            assert sample(http, "jaxserve:batches_delayed") == 1
            wait_for(lambda: sample(http, "jaxserve:batch_failures_total") > 2)
            assert http.get("/ready").status_code == 200
        batch = ended(http, batch_id)
        assert batch["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
        assert trouble(http) is None
        assert sample(http, "jaxserve:batches_delayed") == 0


def test_no_answer_is_lost_to_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with World(config=config(tmp_path), step_s=0.002) as world, serving(world) as http:
        batch_id = begin(http, *(line(str(n), max_tokens=30, ignore_eos=True) for n in range(40)))
        with full(monkeypatch, tmp_path / "batches.sqlite"):
            wait_for(lambda: trouble(http) is not None)
            assert trouble(http)["reason"] == "the server's storage is full"
            failed = 'jaxserve:batch_failures_total{kind="full"}'
            wait_for(lambda: sample(http, failed) > 3)
        batch = ended(http, batch_id)
        assert batch["request_counts"]["completed"] == 40
        # Each line was answered once.
        count = 'jaxserve:http_requests_total{handler="/v1/chat/completions",method="POST"'
        assert sample(http, count) == 40


def test_a_failure_is_logged_once_per_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    monkeypatch.setattr(
        "jaxserve.server.batches.runner.log.error", lambda *_, **fields: logged.append(str(fields))
    )
    with World(config=config(tmp_path)) as world, ExitStack() as lock:
        # Before the runner starts: what it writes first fails, and later it only reads.
        lock.enter_context(locked(tmp_path / "batches.sqlite"))
        with serving(world) as http:
            wait_for(lambda: sample(http, "jaxserve:batch_failures_total") > 3)
            lock.close()
            wait_for(lambda: trouble(http) is None)
    assert len(logged) == 1
    assert str(tmp_path / "batches.sqlite") in logged[0]


def test_a_fault_of_ours_does_not_end_the_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with World(config=config(tmp_path)) as world, serving(world) as http:
        with monkeypatch.context() as patch:
            patch.setattr(world.app.state.server.batches, "next_batch", lambda: 1 / 0)
            wait_for(lambda: sample(http, 'jaxserve:batch_failures_total{kind="internal"}') > 2)
            assert "internal error" in trouble(http)["reason"]
            assert "ZeroDivision" not in trouble(http)["reason"]
        assert ended(http, begin(http, line()))["status"] == "completed"


def test_a_deleted_folder_is_told_and_nothing_is_made_in_its_place(tmp_path: Path) -> None:
    folder = tmp_path / "batches"
    with World(config=config(folder)) as world, serving(world) as http:
        folder.rename(tmp_path / "away")
        wait_for(lambda: trouble(http) is not None)
        response = send(http, b"x")
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "storage_unavailable"
        assert not folder.exists()
        (tmp_path / "away").rename(folder)
        wait_for(lambda: trouble(http) is None)
        assert ended(http, begin(http, line()))["status"] == "completed"


def test_a_batch_whose_input_is_gone_fails_and_others_go_on(tmp_path: Path) -> None:
    with World(config=config(tmp_path)) as world, world.http() as http:
        first, second = begin(http, line()), begin(http, line())
        file_id = http.get(f"/v1/batches/{first}").json()["input_file_id"]
        (tmp_path / "files" / file_id).unlink()
        assert http.get(f"/v1/files/{file_id}/content").status_code == 404
    with World(config=config(tmp_path)) as world, serving(world) as http:
        assert ended(http, first)["errors"]["data"][0]["code"] == "not_found"
        assert ended(http, second)["status"] == "completed"


def test_a_batch_that_fails_keeps_what_was_answered(tmp_path: Path) -> None:
    few = config(tmp_path, max_batch_requests=1)
    with World(config=few, step_s=0.005) as world, serving(world) as http:
        batch_id = begin(http, *(line(str(n), max_tokens=20, ignore_eos=True) for n in range(50)))
        path = f"/v1/batches/{batch_id}"
        wait_for(lambda: http.get(path).json()["request_counts"]["completed"] > 2)
        http.delete(f"/v1/files/{http.get(path).json()['input_file_id']}")
    with World(config=few) as world, serving(world) as http:
        batch = ended(http, batch_id)
        assert batch["status"] == "failed"
        assert batch["errors"]["data"][0]["code"] == "not_found"
        num_results = len(results(http, batch["output_file_id"]))
        assert num_results == batch["request_counts"]["completed"] > 2
    with closing(sqlite3.connect(tmp_path / "batches.sqlite")) as connection:
        assert connection.execute("SELECT count(*) FROM results").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM clocks").fetchone() == (0,)


@pytest.mark.parametrize("step_s", [FOREVER, -FOREVER])
def test_a_step_of_the_clock_expires_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    now = time.time
    with World(config=config(tmp_path), step_s=0.005) as world, serving(world) as http:
        running, waiting = (
            begin(http, *(line(str(n), max_tokens=20, ignore_eos=True) for n in range(20)))
            for _ in range(2)
        )
        kept = http.post(
            "/v1/files",
            files={"file": ("a", BytesIO(b"x"))},
            data={
                "purpose": "batch",
                "expires_after[anchor]": "created_at",
                "expires_after[seconds]": "3600",
            },
        ).json()
        wait_for(
            lambda: http.get(f"/v1/batches/{running}").json()["request_counts"]["completed"] > 1
        )
        monkeypatch.setattr("time.time", lambda: now() + step_s)
        for batch_id in (running, waiting):
            batch = ended(http, batch_id)
            assert batch["status"] == "completed"
            assert batch["request_counts"] == {"total": 20, "completed": 20, "failed": 0}
        assert http.get(f"/v1/files/{kept['id']}").status_code == 200


def test_after_a_reboot_the_wall_clock_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    with World(config=config(tmp_path)) as world, world.http() as http:
        batch_id = begin(http, line())
    monkeypatch.setattr("time.time", lambda: now() + FOREVER)
    monkeypatch.setattr("jaxserve.server.batches.store.boot_id", lambda: "another")
    with World(config=config(tmp_path)) as world, serving(world) as http:
        assert ended(http, batch_id)["status"] == "expired"


def test_a_response_in_the_making_survives_a_step_of_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = time.time
    with World(step_s=0.01) as world, world.http() as http:
        body = {"input": "hello", "max_output_tokens": 100, "ignore_eos": True, "background": True}
        path = f"/v1/responses/{http.post('/v1/responses', json=body).json()['id']}"
        monkeypatch.setattr("time.time", lambda: now() + FOREVER)
        assert http.get(path).json()["status"] in {"queued", "in_progress"}
        wait_for(lambda: http.get(path).json()["status"] == "incomplete")


def test_a_response_that_cannot_be_kept_is_an_error_with_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = {"input": "hello", "max_output_tokens": 4}
    with World() as world, world.http() as http:
        kept = http.post("/v1/responses", json=body).json()["id"]
        with full(monkeypatch, world.folder / "responses.sqlite"):
            large = {str(n): "x" * 500 for n in range(16)}
            response = http.post("/v1/responses", json={**body, "metadata": large})
            assert response.status_code == 507
            assert response.json()["error"]["code"] == "storage_full"
            assert http.post("/v1/responses", json={**body, "store": False}).status_code == 200
        with locked(world.folder / "responses.sqlite"):
            for method, path, fields in (
                ("POST", "/v1/responses", {"json": body}),
                ("POST", "/v1/responses", {"json": {**body, "previous_response_id": kept}}),
                ("DELETE", f"/v1/responses/{kept}", {}),
            ):
                response = http.request(method, path, **fields)
                assert response.status_code == 503, (method, path)
                assert response.json()["error"]["code"] == "storage_unavailable"
                assert int(response.headers["retry-after"]) > 0
            # To read needs no lock.
            assert http.get(f"/v1/responses/{kept}").status_code == 200
            goes_on = {**body, "previous_response_id": kept, "store": False}
            assert http.post("/v1/responses", json=goes_on).status_code == 200
            stream = http.post("/v1/responses", json={**body, "stream": True}).text
            assert stream.strip().split("\n\n")[-1].startswith("event: error")
        assert http.get(f"/v1/responses/{kept}").status_code == 200


def test_a_response_in_the_background_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxserve.server.responses.handler.FINISH_DELAYS_S", (0.05,) * 100)
    body = {"input": "hello", "max_output_tokens": 20, "ignore_eos": True, "background": True}
    body["seed"] = 1
    with World(step_s=0.01) as world, world.http() as http:
        path = f"/v1/responses/{http.post('/v1/responses', json=body).json()['id']}"
        with locked(world.folder / "responses.sqlite"):
            wait_for(world.is_idle)
            # Made, and kept nowhere yet.
            assert http.get(path).json()["status"] in {"queued", "in_progress"}
        wait_for(lambda: http.get(path).json()["status"] == "incomplete")
        kept = http.get(path).json()
        assert kept["usage"]["output_tokens"] == 20
        foreground = http.post("/v1/responses", json={**body, "background": False}).json()
        texts = [each["output"][0]["content"][0]["text"] for each in (kept, foreground)]
        assert texts[0] == texts[1] != ""


def test_a_locked_database_can_be_read_and_not_written(tmp_path: Path) -> None:
    with World(config=config(tmp_path)) as world, world.http() as http:
        batch_id, file = begin(http, line()), upload(http, b"x")["id"]
        body = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}
        with locked(tmp_path / "batches.sqlite"):
            for path in ("/v1/files", "/v1/batches", f"/v1/batches/{batch_id}"):
                assert http.get(path).status_code == 200
            assert http.get(f"/v1/files/{file}/content").content == b"x"
            for response in (
                http.post("/v1/batches", json=body),
                http.post(f"/v1/batches/{batch_id}/cancel"),
                http.delete(f"/v1/files/{file}"),
                send(http, b"x"),
            ):
                assert response.status_code == 503
                assert response.json()["error"]["code"] == "storage_unavailable"
                assert int(response.headers["retry-after"]) > 0
        assert http.get(f"/v1/files/{file}").status_code == 200


def corrupt(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 500)


def break_a_page(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("CREATE TABLE more (x)")
        connection.executemany("INSERT INTO more VALUES (?)", [("x" * 500,)] * 100)
        connection.commit()
    with path.open("r+b") as file:
        file.seek(-4096, 2)
        file.write(b"\xff" * 4096)


@pytest.mark.parametrize("damage", [corrupt, break_a_page])
def test_a_corrupt_database_is_one_line_before_anything_starts(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    with claimed(tmp_path):
        pass
    damage(tmp_path / "batches.sqlite")
    with pytest.raises(StorageError) as caught, claimed(tmp_path):
        pass
    assert caught.value.fault is StorageFault.CORRUPT
    assert str(tmp_path / "batches.sqlite") in str(caught.value)
    assert "move it away" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("batches.sqlite", lambda folder: BatchStore(folder, max_bytes=1, max_batches=1)),
        ("responses.sqlite", lambda folder: ResponseStore(folder, max_responses=1, max_bytes=1)),
    ],
)
def test_every_store_names_its_corrupt_database(
    tmp_path: Path, name: str, make: Callable[[Path], object]
) -> None:
    corrupt(tmp_path / name)
    with pytest.raises(StorageError, match=name):
        make(tmp_path)


def test_a_transaction_that_fails_in_the_middle_is_undone(tmp_path: Path) -> None:
    database = Database(tmp_path / "a.sqlite", "CREATE TABLE IF NOT EXISTS t (x)")

    def fail() -> None:
        with database.transaction() as connection:
            connection.execute("INSERT INTO t VALUES (1)")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with database.transaction() as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone()[0] == 0
