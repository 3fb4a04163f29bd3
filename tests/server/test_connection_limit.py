"""At the connection limit, probes are answered, idle connections evicted, and others refused."""

import json
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest

from jaxserve.server import ServerConfig
from jaxserve.server.transport.acceptor import OWN_FILES, affordable_connections
from jaxserve.server.transport.connections import GRACE_S, IDLE_S, MAX_SURPLUS, Connections
from tests.server.sockets import connected, get, one_answer, post_head, until_closed
from tests.server.world import Address, World, wait_for

LIMIT = 4


@contextmanager
def full(world: World, address: Address) -> Iterator[None]:
    """As many streams as connections are allowed, all of them under way."""
    body = {"prompt": "hello", "max_tokens": 100, "ignore_eos": True, "stream": True}
    data = json.dumps(body).encode()
    with ExitStack() as stack:
        for _ in range(LIMIT):
            client = stack.enter_context(connected(address))
            client.sendall(post_head("/v1/completions", len(data)) + data)
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
        yield
    world.wait_until_idle()


def refusals(world: World, reason: str) -> float:
    families = {family.name: dict(family.series) for family in world.metrics.snapshot()}
    return families.get("jaxserve:http_refusals", {}).get((reason,), (0.0,))[0]


@pytest.fixture
def world() -> World:
    return World(config=ServerConfig(port=0, max_connections=LIMIT), step_s=0.05)


def test_probes_are_answered_and_others_are_told_to_come_back(world: World) -> None:
    with world, world.listening() as address:
        with full(world, address):
            for path in ("/health", "/ready", "/metrics"):
                response = httpx.get(address.url + path)
                assert response.status_code == 200
                assert response.headers["connection"] == "close"
            response = httpx.get(address.url + "/v1/models")
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "overloaded"
            assert int(response.headers["retry-after"]) >= 1
            assert response.headers["connection"] == "close"
            assert refusals(world, "connections") == 4
        assert httpx.get(address.url + "/v1/models").status_code == 200


def test_readiness_is_the_truth_at_the_limit_too(world: World) -> None:
    with world, world.listening() as address, full(world, address):
        world.app.state.server.is_stopping = True
        assert httpx.get(address.url + "/ready").status_code == 503
        world.app.state.server.is_stopping = False


def test_idle_connections_make_room(world: World) -> None:
    with world, world.listening() as address, ExitStack() as stack:
        idle = [stack.enter_context(connected(address)) for _ in range(LIMIT)]
        for client in idle[1:]:
            client.sendall(get("/health").replace(b"connection: close\r\n", b""))
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
        assert httpx.get(address.url + "/v1/models").status_code == 200
        assert until_closed(idle[0]) == b""
        assert refusals(world, "idle") >= 1


def test_in_a_flood_of_connections_probes_are_answered() -> None:
    config = ServerConfig(port=0, max_connections=1)
    with World(config=config) as world, world.listening() as address, ExitStack() as stack:
        # More than the surplus: the oldest make room, however short they have been there.
        clients = [stack.enter_context(connected(address)) for _ in range(2 + MAX_SURPLUS)]
        assert httpx.get(address.url + "/health").status_code == 200
        assert until_closed(clients[0]) == b""


def test_a_request_takes_the_place_of_a_connection_that_has_none(world: World) -> None:
    with world, world.listening() as address, ExitStack() as stack:
        idle = [stack.enter_context(connected(address)) for _ in range(LIMIT)]
        # At once, though they have only just come.
        assert httpx.get(address.url + "/v1/models").status_code == 200
        assert until_closed(idle[0]) == b""
        assert refusals(world, "connections") == 0


class Client:
    def __init__(self) -> None:
        self.is_closed = False

    def close_idle(self) -> None:
        self.is_closed = True


def test_the_oldest_idle_connection_goes_first_and_none_that_has_just_come() -> None:
    now_s = 100.0
    crowd = Connections(2, clock=lambda: now_s)
    first, second, third = Client(), Client(), Client()
    crowd.wait(first)
    crowd.wait(second)
    crowd.leave(first)
    now_s += 0.9 * IDLE_S
    crowd.wait(third)
    assert not crowd.make_room()
    now_s += 0.2 * IDLE_S
    assert crowd.make_room()
    assert [each.is_closed for each in (first, second, third)] == [False, True, False]
    assert not crowd.make_room()


def test_beyond_all_places_connections_wait_until_the_oldest_have_had_their_chance() -> None:
    now_s = 100.0
    crowd = Connections(1, surplus=1, clock=lambda: now_s)
    crowd.wait(Client())
    now_s += 0.75 * GRACE_S
    crowd.wait(Client())
    assert crowd.crowded_s(1) == 0.0
    assert crowd.crowded_s(2) == pytest.approx(0.25 * GRACE_S)
    assert crowd.crowded_s(3) == pytest.approx(GRACE_S)
    now_s += 0.5 * GRACE_S
    assert crowd.crowded_s(2) == 0.0


class TestOpenFiles:
    """A process that has few file descriptors."""

    @pytest.fixture
    def limits(self) -> Iterator[tuple[int, int]]:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        yield limits
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    def test_the_soft_limit_is_raised(self, limits: tuple[int, int]) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        assert affordable_connections(400).limit == 400
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 400 + MAX_SURPLUS + OWN_FILES

    def test_connections_wait_and_it_is_said_once(
        self, limits: tuple[int, int], caplog: pytest.LogCaptureFixture
    ) -> None:
        with World() as world, world.listening() as address:
            assert httpx.get(address.url + "/health").status_code == 200
            with socket.socket() as probe:
                lowest_free = probe.fileno()
            with ExitStack() as stack:
                client = stack.enter_context(socket.socket())
                client.settimeout(30.0)
                # Descriptors below the limit may be free.
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 8, limits[1]))
                with suppress(OSError):
                    while True:
                        stack.enter_context(socket.socket())
                client.connect(("127.0.0.1", address.port))
                client.sendall(get("/health"))
                wait_for(lambda: refusals(world, "open_files") >= 1)
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                status, _, _ = one_answer(until_closed(client))
                assert status == 200
        lines = [record for record in caplog.records if "too many open files" in str(record.msg)]
        assert len(lines) == 1
        assert all(record.exc_info is None for record in caplog.records)
