"""A server that stops takes nothing new; and settings that cannot work."""

import socket
import threading

import httpx
import pytest

from jaxserve.errors import ConfigError
from jaxserve.server import ServerConfig, bind
from tests.server.world import World, wait_for

BODY = {"prompt": "x", "max_tokens": 120, "ignore_eos": True, "stream": True}


def test_while_draining_nothing_new_is_taken() -> None:
    # Open connections, because no client can make a new one by then.
    world = World(step_s=0.02)
    with (
        world,
        world.listening() as address,
        httpx.Client(base_url=address.url) as client,
        httpx.Client(base_url=address.url) as other,
    ):
        stream = threading.Thread(
            target=lambda: httpx.post(f"{address.url}/v1/completions", json=BODY, timeout=60)
        )
        stream.start()
        assert [each.get("/ready").status_code for each in (client, other)] == [200, 200]
        wait_for(lambda: not world.is_idle())
        address.server.should_exit = True
        wait_for(lambda: world.app.state.server.capacity.is_draining)
        ready = client.get("/ready")
        refused = other.post("/v1/completions", json=BODY)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address.url}/ready")
        stream.join()
    for response in (ready, refused):
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "shutting_down"
        assert response.headers["retry-after"] == "1"
        assert response.headers["connection"] == "close"


def test_a_port_that_is_taken_is_a_clear_error() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}: the port is in use"):
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
        {"shutdown_delay_s": -1.0},
        {"api_server_count": 0},
        {"max_restarts": -1},
        {"restart_delay_s": -1.0},
        {"engine_hang_timeout_s": 0.0},
        {"engine_start_timeout_s": 0.0},
        {"api_hang_timeout_s": 0.0},
        {"shutdown_timeout_s": float("nan")},
        {"ssl_certfile": "a.pem"},
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ServerConfig(**settings)  # type: ignore[arg-type]
