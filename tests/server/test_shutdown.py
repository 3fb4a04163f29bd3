"""SIGTERM: nothing new, the time to drain, a last word, and the exit status."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from jaxserve.errors import ConfigError
from jaxserve.server import ServerConfig, bind
from tests.server.world import World, events, wait_for

ROOT = Path(__file__).resolve().parents[2]
BODY = {"prompt": "x", "max_tokens": 120, "ignore_eos": True, "stream": True}
SCRIPT = """
import sys
from jaxserve.server import ServerConfig, serve
from tests.server.world import World
step_s, shutdown_timeout_s = map(float, sys.argv[1:])
config = ServerConfig(port=0, shutdown_timeout_s=shutdown_timeout_s)
sys.exit(serve(World(config=config, step_s=step_s).app, config))
"""


@contextmanager
def process(
    *, step_s: float, shutdown_timeout_s: float
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its URL, taken from the line it prints when ready."""
    arguments = [sys.executable, "-c", SCRIPT, str(step_s), str(shutdown_timeout_s)]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            line = child.stdout.readline()
            assert line.startswith("jaxserve ")
            yield child, line.split()[-1]
        finally:
            child.kill()


def test_sigterm_lets_answers_finish_and_exits_with_0() -> None:
    with process(step_s=0.005, shutdown_timeout_s=30.0) as (child, url):
        with httpx.stream("POST", f"{url}/v1/completions", json=BODY, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            child.send_signal(signal.SIGTERM)
            rest = events(lines)
        assert rest[-1] is None
        assert rest[-2]["choices"][0]["finish_reason"] == "length"
        assert child.wait(20.0) == 0


def test_what_outlasts_the_time_to_drain_ends_with_an_error() -> None:
    with process(step_s=0.2, shutdown_timeout_s=0.5) as (child, url):
        with httpx.stream("POST", f"{url}/v1/completions", json=BODY, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            began_s = time.monotonic()
            child.send_signal(signal.SIGTERM)
            rest = events(lines)
        assert rest[-1]["error"]["code"] == "shutting_down"
        assert child.wait(20.0) == 0
        assert 0.4 < time.monotonic() - began_s < 5.0


def test_a_second_signal_stops_at_once() -> None:
    with (
        process(step_s=0.2, shutdown_timeout_s=60.0) as (child, url),
        httpx.stream("POST", f"{url}/v1/completions", json=BODY, timeout=60) as response,
    ):
        next(response.iter_lines())
        began_s = time.monotonic()
        child.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert child.poll() is None
        child.send_signal(signal.SIGTERM)
        assert child.wait(5.0) != 0
        assert time.monotonic() - began_s < 3.0


def test_while_draining_nothing_new_is_taken() -> None:
    # An open connection, since nobody can make a new one by then.
    world = World(step_s=0.02)
    with world, world.listening() as address, httpx.Client(base_url=address.url) as client:
        stream = threading.Thread(
            target=lambda: httpx.post(f"{address.url}/v1/completions", json=BODY, timeout=60)
        )
        stream.start()
        assert client.get("/ready").status_code == 200
        wait_for(lambda: not world.is_idle())
        address.server.should_exit = True
        wait_for(lambda: world.app.state.server.is_draining)
        ready = client.get("/ready")
        refused = client.post("/v1/completions", json=BODY)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address.url}/ready")
        stream.join()
    for response in (ready, refused):
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "shutting_down"
        assert response.headers["retry-after"] == "1"


def test_a_port_that_is_taken_is_a_clear_error() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}.*taken"):
            bind(ServerConfig(port=port))


@pytest.mark.parametrize(
    "settings",
    [
        {"port": -1},
        {"port": 65536},
        {"api_keys": ("",)},
        {"max_body_bytes": 0},
        {"header_timeout_s": 0.0},
        {"shutdown_timeout_s": -1.0},
        {"shutdown_timeout_s": float("nan")},
        {"ssl_certfile": "a.pem"},
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ServerConfig(**settings)  # type: ignore[arg-type]
