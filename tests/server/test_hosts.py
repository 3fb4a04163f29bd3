"""Requests by DNS rebinding and cross-site pages are refused; other clients are not affected."""

from typing import Any

import pytest

from jaxserve.errors import ConfigError
from jaxserve.server import ServerConfig
from tests.server.sockets import connected, one_answer, until_closed
from tests.server.world import World

BODY = {"prompt": "hello", "max_tokens": 1}
OWN = (
    "localhost",
    "localhost:8000",
    "LocalHost.:8000",
    "app.localhost",
    "127.0.0.1",
    "127.8.8.8:99",
    "[::1]:8000",
    "192.168.1.5:8000",
    "[fd00::1]",
    "host.docker.internal:8000",
)
STRANGE = (
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil-localhost",
)


def status(named: str, **config: Any) -> int:
    with World(config=ServerConfig(port=0, **config)) as world:
        return world.http().get("/v1/models", headers={"host": named}).status_code


@pytest.fixture(scope="module")
def world() -> Any:
    with World() as world:
        yield world


@pytest.mark.parametrize("host", OWN)
@pytest.mark.parametrize("path", ["/v1/models", "/health", "/"])
def test_names_of_this_machine_and_addresses_are_answered(
    world: World, host: str, path: str
) -> None:
    assert world.http().get(path, headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", STRANGE)
@pytest.mark.parametrize("path", ["/v1/models", "/health", "/", "/metrics", "/nowhere"])
def test_other_names_are_refused_on_loopback_without_a_key(
    world: World, host: str, path: str
) -> None:
    response = world.http().get(path, headers={"host": host})
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "host_not_allowed"
    assert "--allowed-hosts" in response.json()["error"]["message"]
    assert "x-request-id" in response.headers


def test_a_request_over_a_socket_is_refused_once() -> None:
    with World() as world, world.listening() as address, connected(address) as client:
        request = b"GET /v1/models HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n"
        client.sendall(request)
        assert one_answer(until_closed(client))[0] == 403


def test_old_clients_that_name_no_host_are_answered() -> None:
    with World() as world, world.listening() as address, connected(address) as client:
        client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert until_closed(client).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("host", "config", "expected"),
    [
        # A load balancer, a service's name and a kubelet's probe of a pod.
        ("llm.example.com", {"host": "0.0.0.0"}, 200),
        ("jaxserve:8000", {"host": "0.0.0.0"}, 200),
        ("10.1.2.3:8000", {"host": "0.0.0.0"}, 200),
        ("[fd00::1]:8000", {"host": "::"}, 200),
        ("llm.example.com", {"host": "192.168.1.5"}, 200),
        # A proxy on the same machine.
        ("llm.example.com", {"allowed_hosts": ("llm.example.com",)}, 200),
        ("LLM.example.com:443", {"allowed_hosts": ("llm.Example.com",)}, 200),
        ("a.b.example.com", {"allowed_hosts": ("*.example.com",)}, 200),
        ("example.com", {"allowed_hosts": ("*.example.com",)}, 403),
        ("evilexample.com", {"allowed_hosts": ("*.example.com",)}, 403),
        ("evil.example", {"allowed_hosts": ("llm.example.com",)}, 403),
        ("evil.example", {"allowed_hosts": ("*",)}, 200),
        ("localhost", {"allowed_hosts": ("llm.example.com",)}, 200),
        # Given, it holds wherever the server listens; probes name an address.
        ("evil.example", {"host": "0.0.0.0", "allowed_hosts": ("llm.example.com",)}, 403),
        ("10.1.2.3:8000", {"host": "0.0.0.0", "allowed_hosts": ("llm.example.com",)}, 200),
        ("evil.example", {"host": "localhost"}, 403),
        ("evil.example", {"host": "127.0.0.2"}, 403),
        ("evil.example", {"host": "::1"}, 403),
    ],
)
def test_what_is_allowed_depends_on_the_address_and_the_flag(
    host: str, config: dict[str, Any], expected: int
) -> None:
    assert status(host, **config) == expected


def test_with_a_key_any_name_may_be_used_but_the_key_is_asked_for() -> None:
    assert status("llm.example.com", api_keys=("secret",)) == 401


def test_an_allowed_host_is_a_name() -> None:
    for wrong in ("https://llm.example.com", "llm.example.com:8000", "", "*example.com", "a b"):
        with pytest.raises(ConfigError, match="allowed_hosts"):
            ServerConfig(allowed_hosts=(wrong,))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),
        ({"origin": "http://localhost:8000"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://localhost:3000"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://evil.example", "sec-fetch-site": "cross-site"}, 403),
        # A proxy that rewrites Host.
        ({"origin": "https://llm.example.com", "sec-fetch-site": "same-origin"}, 200),
    ],
)
@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_pages_of_other_origins_cannot_change_anything(
    world: World, headers: dict[str, str], expected: int, method: str
) -> None:
    path = "/v1/completions" if method == "POST" else "/v1/responses/resp_unknown"
    response = world.http().request(
        method, path, json=BODY, headers={"host": "localhost:8000", **headers}
    )
    if expected == 403:
        assert response.status_code == 403
        assert response.json()["error"]["code"] == "origin_not_allowed"
    else:
        assert response.status_code in {200, 404}


def test_a_page_cannot_upload_a_file(world: World) -> None:
    files: Any = {"file": ("a.jsonl", b"{}"), "purpose": (None, "batch")}
    headers = {"origin": "http://evil.example"}
    assert world.http().post("/v1/files", files=files, headers=headers).status_code == 403
    assert world.http().get("/v1/files").json()["data"] == []


@pytest.mark.parametrize(
    "config", [{"allowed_origins": ("http://good.example",)}, {"allowed_origins": ("*",)}]
)
def test_allowed_origins_may(config: dict[str, Any]) -> None:
    with World(config=ServerConfig(port=0, **config)) as world:
        headers = {"origin": "http://good.example"}
        response = world.http().post("/v1/completions", json=BODY, headers=headers)
        assert response.status_code == 200


def test_with_a_key_the_key_is_what_counts() -> None:
    with World(config=ServerConfig(port=0, api_keys=("secret",))) as world:
        headers = {"origin": "http://evil.example", "authorization": "Bearer secret"}
        response = world.http().post("/v1/completions", json=BODY, headers=headers)
        assert response.status_code == 200
