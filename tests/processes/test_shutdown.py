"""A stopping server serves for a while, then drains."""

import signal
import time
from pathlib import Path

import httpx
import pytest

from tests.processes.test_server import AT_ONCE_S, LONG
from tests.processes.world import TIMEOUT_S, server, wait_for
from tests.server.world import events

FOR_EVER_S = 3600.0


def test_a_stopping_server_answers_but_is_not_ready(tmp_path: Path) -> None:
    config = {"shutdown_delay_s": FOR_EVER_S, "api_server_count": 2}
    with server(tmp_path, config=config) as made, httpx.Client(base_url=made.url) as kept:
        assert "connection" not in kept.get("/health").headers
        made.process.send_signal(signal.SIGTERM)
        # Both processes, whichever a new connection goes to.
        for _ in range(8):
            wait_for(lambda: made.status("/ready") == 503)
        ready = httpx.get(f"{made.url}/ready")
        assert ready.json()["error"]["code"] == "shutting_down"
        last = kept.get("/health")
        assert (last.status_code, last.headers["connection"]) == (200, "close")
        answer = made.complete()
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        with made.stream(max_tokens=20, ignore_eos=True) as lines:
            assert events(lines)[-1] is None
        made.process.send_signal(signal.SIGTERM)
        assert made.process.wait(TIMEOUT_S) == 1
        with pytest.raises(httpx.ConnectError):
            made.status("/health")


def test_after_the_delay_the_server_drains(tmp_path: Path) -> None:
    with server(tmp_path, config={"shutdown_delay_s": 1.0}, step_s=0.005) as made:
        with made.stream(max_tokens=400, ignore_eos=True) as lines:
            began_s = time.monotonic()
            made.process.send_signal(signal.SIGTERM)
            assert events(lines)[-1] is None
        assert made.process.wait(TIMEOUT_S) == 0
        assert 1.0 < time.monotonic() - began_s < AT_ONCE_S
        with pytest.raises(httpx.ConnectError):
            made.status("/health")


def test_a_server_that_never_was_ready_stops_without_delay(tmp_path: Path) -> None:
    config = {"shutdown_delay_s": FOR_EVER_S}
    with server(tmp_path, wait=False, config=config, gate=str(tmp_path / "none")) as made:
        wait_for(lambda: len(made.apis) == 1)
        made.process.send_signal(signal.SIGTERM)
        assert made.process.wait(TIMEOUT_S) == 0


def test_a_server_without_api_processes_does_not_wait_for_the_delay(tmp_path: Path) -> None:
    with server(tmp_path, config={"shutdown_delay_s": FOR_EVER_S}) as made:
        made.process.send_signal(signal.SIGTERM)
        wait_for(lambda: made.status("/ready") == 503)
        made.apis[0].kill()
        assert made.process.wait(TIMEOUT_S) == 0


def test_answers_of_an_engine_that_hangs_end_with_an_error(tmp_path: Path) -> None:
    with server(tmp_path, config={"shutdown_timeout_s": 0.2}, step_s=0.01) as made:
        with made.stream(**LONG) as lines:
            made.engine.suspend()
            made.process.send_signal(signal.SIGTERM)
            assert "error" in events(lines)[-1]
        assert made.process.wait(TIMEOUT_S) == 0
