"""Processes that are stopped or start late: what probes say, and who answers meanwhile."""

import signal
import time
from pathlib import Path

import httpx

from tests.processes.world import PROGRAMS, TIMEOUT_S, Server, server, wait_for


def test_readiness_notices_a_stopped_engine_within_two_seconds(tmp_path: Path) -> None:
    with server(tmp_path) as made:
        made.engine.send_signal(signal.SIGSTOP)
        stopped_s = time.monotonic()
        wait_for(lambda: not made.is_ready())
        assert time.monotonic() - stopped_s < 2.5  # and half a second for a busy machine
        response = httpx.get(f"{made.url}/ready", timeout=TIMEOUT_S)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "engine_silent"
        assert made.status("/health") == 200
        engine = made.engine.pid
        made.engine.send_signal(signal.SIGCONT)
        wait_for(made.is_ready)
        assert made.complete().status_code == 200
        assert made.engine.pid == engine


def test_an_engine_that_stays_stopped_is_replaced(tmp_path: Path) -> None:
    with server(tmp_path, config={"engine_hang_timeout_s": 18.0}) as made:
        engine = made.engine
        engine.send_signal(signal.SIGSTOP)
        wait_for(lambda: not engine.is_running())
        wait_for(made.is_ready)
        assert made.complete().status_code == 200


def test_a_compilation_in_a_step_is_no_hang(tmp_path: Path) -> None:
    with server(tmp_path, config={"engine_hang_timeout_s": 1.0}) as made:
        engine = made.engine.pid
        assert made.complete(15).status_code == 200
        assert made.engine.pid == engine


def test_a_stopped_api_process_among_two_keeps_nobody_waiting(tmp_path: Path) -> None:
    config = {"api_server_count": 2, "api_hang_timeout_s": 4.0}
    with server(tmp_path, config=config) as made:
        stopped, other = made.apis
        stopped.send_signal(signal.SIGSTOP)
        for _ in range(20):
            assert httpx.get(f"{made.url}/ready", timeout=2.0).status_code == 200
            assert made.complete().status_code == 200
        wait_for(lambda: len({each.pid for each in made.apis} - {stopped.pid}) == 2)
        assert other.is_running()
        assert made.complete().status_code == 200


def late(tmp_path: Path) -> Path:
    """A file without which API processes become ready."""
    return tmp_path / "late"


def two(tmp_path: Path) -> dict[str, str]:
    return {**PROGRAMS, "api": "tests.processes.late_api"}


def apis(made: Server) -> list[int]:
    return [each.pid for each in made.children("tests.processes.late_api")]


def test_a_restarted_api_process_accepts_nothing_until_it_is_ready(tmp_path: Path) -> None:
    with server(tmp_path, config={"api_server_count": 2}, programs=two(tmp_path)) as made:
        late(tmp_path).touch()
        first, second = made.children("tests.processes.late_api")
        first.kill()
        wait_for(lambda: len(set(apis(made)) - {first.pid, second.pid}) == 1)
        # Long enough for it to start and listen, if it did.
        until_s = time.monotonic() + 3.0
        while time.monotonic() < until_s:
            assert made.status("/ready") == 200
            assert made.complete().status_code == 200
        late(tmp_path).unlink()
        second.kill()
        wait_for(made.is_ready)
        assert made.complete().status_code == 200


def test_the_last_api_process_answers_probes_although_it_is_not_ready(tmp_path: Path) -> None:
    with server(tmp_path, config={"api_server_count": 2}, programs=two(tmp_path)) as made:
        late(tmp_path).touch()
        old = made.children("tests.processes.late_api")
        old[0].kill()
        wait_for(lambda: len(set(apis(made)) - {each.pid for each in old}) == 1)
        old[1].kill()
        assert made.status("/live") == 200
        assert made.status("/ready") == 503
        late(tmp_path).unlink()
        wait_for(made.is_ready)
