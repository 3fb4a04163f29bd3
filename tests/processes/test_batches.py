"""Batches in a real server: any process takes them, one runs them, the next one goes on."""

import json
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
