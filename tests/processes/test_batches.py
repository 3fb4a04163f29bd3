"""Batches in a real server: any process takes them, one runs them, the next one goes on."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx

from tests.processes.world import TIMEOUT_S, Server, server, wait_for


def begin(made: Server, count: int, **fields: Any) -> str:
    """Begin a batch of completions, and return its URL."""
    url = "/v1/completions"
    lines = "\n".join(
        json.dumps({"custom_id": str(n), "method": "POST", "url": url, "body": fields})
        for n in range(count)
    )
    file = httpx.post(
        f"{made.url}/v1/files",
        files={"file": ("in.jsonl", lines.encode())},
        data={"purpose": "batch"},
        timeout=TIMEOUT_S,
    ).json()
    body = {"input_file_id": file["id"], "endpoint": url, "completion_window": "24h"}
    batch = httpx.post(f"{made.url}/v1/batches", json=body, timeout=TIMEOUT_S).json()
    return f"{made.url}/v1/batches/{batch['id']}"


def test_a_batch_outlives_the_processes_that_run_it(tmp_path: Path) -> None:
    config = {"api_server_count": 2, "max_batch_requests": 2}
    with server(tmp_path, config=config, step_s=0.005) as made:
        url = begin(made, 20, prompt=[1, 2, 3], max_tokens=20, ignore_eos=True)

        def batch() -> dict[str, Any]:
            found: dict[str, Any] = httpx.get(url, timeout=TIMEOUT_S).json()
            return found

        wait_for(lambda: batch()["request_counts"]["completed"] > 2)
        for api in made.apis:
            api.kill()
        wait_for(lambda: len(made.apis) == 2 and made.is_ready())
        wait_for(lambda: batch()["status"] == "completed")
        assert batch()["request_counts"] == {"total": 20, "completed": 20, "failed": 0}


def test_every_process_tells_what_delays_batches(tmp_path: Path) -> None:
    folder = tmp_path / "batches"
    config = {"api_server_count": 2, "batch_dir": str(folder), "max_batch_requests": 1}
    with server(tmp_path, config=config, step_s=0.005) as made:

        def health() -> list[dict[str, Any]]:
            # As many new connections as reach both processes.
            return [httpx.get(f"{made.url}/health", timeout=TIMEOUT_S).json() for _ in range(8)]

        assert not any("batches" in found for found in health())
        with closing(sqlite3.connect(folder / "batches.sqlite", isolation_level=None)) as other:
            url = begin(made, 20, prompt=[1, 2, 3], max_tokens=500, ignore_eos=True)
            wait_for(lambda: httpx.get(url, timeout=TIMEOUT_S).json()["status"] == "in_progress")
            other.execute("BEGIN IMMEDIATE")
            wait_for(lambda: all("locked" in str(found.get("batches")) for found in health()))
            assert made.is_ready()
            # A process that is busy may not answer a scrape in time.
            wait_for(lambda: made.samples().get("jaxserve:batches_delayed") == 1)
            other.execute("ROLLBACK")
        wait_for(lambda: not any("batches" in found for found in health()))
        wait_for(lambda: made.samples().get("jaxserve:batches_delayed") == 0)
        httpx.post(f"{url}/cancel", timeout=TIMEOUT_S)


def test_a_corrupt_database_ends_a_start_with_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "batches"
    folder.mkdir()
    (folder / "batches.sqlite").write_bytes(b"no database" * 999)
    with server(tmp_path, config={"batch_dir": str(folder)}, wait=False) as made:
        assert made.process.wait(TIMEOUT_S) == 1
        assert made.process.stdout is not None
        said = made.process.stdout.read()
    assert f"{folder / 'batches.sqlite'} cannot be used" in said
    assert "move it away" in said
    log = (tmp_path / "log").read_text("utf-8")
    assert "Traceback" not in log
    assert log.count("cannot be used") == 1
