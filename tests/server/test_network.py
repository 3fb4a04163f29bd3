"""Where a server listens, what stands before its paths, and what operators put around it."""

import asyncio
import io
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxserve.errors import ConfigError
from jaxserve.server import ServerConfig
from jaxserve.server.http.extensions import extension
from jaxserve.server.transport.certificates import refresh_certificates
from jaxserve.server.transport.listener import bound
from jaxserve.server.transport.run import Server
from tests.server.test_log import lines, log
from tests.server.world import World, wait_for

__all__ = ["log"]  # the fixture

KEY = {"authorization": "Bearer sk-a"}


class Stamp:
    """A class of middleware, as an operator may write one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-stamp", b"class")]
            await send(message)

        await self._app(scope, receive, stamped)


async def refuse_teapots(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    """A function of middleware."""
    if request.headers.get("user-agent") == "teapot":
        return PlainTextResponse("short and stout", 418)
    return await call_next(request)


def test_paths_are_served_with_and_without_their_prefix_and_ask_for_the_same_keys() -> None:
    config = ServerConfig(port=0, root_path="/llm/one", api_keys=("sk-a",))
    with World(config=config) as world, world.http() as http:
        for prefix in ("", "/llm/one"):
            assert http.get(f"{prefix}/health").status_code == 200
            assert http.get(f"{prefix}/v1/models").status_code == 401
            assert http.get(f"{prefix}/v1/models", headers=KEY).status_code == 200
            assert http.get(f"{prefix}/v1/models/tiny%2Fmodel", headers=KEY).status_code == 200
        assert http.get("/llm/oneself/health", headers=KEY).status_code == 404
        assert http.get("/llm/one/llm/one/health", headers=KEY).status_code == 404
        document = http.get("/llm/one/openapi.json", headers=KEY).json()
        assert document["servers"] == [{"url": "/llm/one"}]


@pytest.mark.parametrize("root_path", ["llm", "/", "/llm/", "/a b", "/a?b"])
def test_a_prefix_that_is_no_path_is_refused(root_path: str) -> None:
    with pytest.raises(ConfigError, match="root_path must begin but not end with /"):
        ServerConfig(root_path=root_path)


def test_middleware_of_ones_own_stands_around_every_answer() -> None:
    places = (f"{__name__}.Stamp", f"{__name__}:refuse_teapots")
    with World(config=ServerConfig(port=0, middleware=places)) as world, world.http() as http:
        assert http.get("/v1/models").headers["x-stamp"] == "class"
        assert http.get("/v1/models", headers={"user-agent": "teapot"}).status_code == 418


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nothing", "cannot import"),
        ("no.such.module", "cannot import"),
        (f"{__name__}.absent", "cannot import"),
        (f"{__name__}.KEY", "must be a class or a coroutine function"),
    ],
)
def test_what_is_no_middleware_is_refused(place: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        extension(place)


def test_documents_can_be_turned_off() -> None:
    with World(config=ServerConfig(port=0, disable_docs=True)) as world, world.http() as http:
        assert {http.get(path).status_code for path in ("/docs", "/openapi.json")} == {404}


def test_requests_can_be_left_out_of_the_log_all_or_some(log: io.StringIO) -> None:
    with World(config=ServerConfig(port=0, quiet_paths=("/v1/models",))) as world:
        world.http().get("/v1/models")
        world.http().get("/version")
    assert [line["path"] for line in lines(log)] == ["/version"]
    with World(config=ServerConfig(port=0, disable_access_log=True)) as world:
        world.http().get("/version")
    assert len(lines(log)) == 1


def test_what_other_pages_may_send_is_the_operators_choice() -> None:
    config = ServerConfig(
        port=0,
        allowed_origins=("https://a.example",),
        allowed_methods=("GET",),
        allowed_headers=("x-mine",),
        allow_credentials=True,
    )
    with World(config=config) as world, world.http() as http:

        def preflight(method: str) -> Any:
            headers = {"origin": "https://a.example", "access-control-request-method": method}
            return http.options("/v1/models", headers=headers)

        allowed = preflight("GET")
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-credentials"] == "true"
        assert "x-mine" in allowed.headers["access-control-allow-headers"]
        assert preflight("DELETE").status_code == 400


def test_a_server_listens_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    config = ServerConfig(uds=str(path))
    with World(config=config) as world, bound(config) as listener:
        server = Server(world.app, config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_for(lambda: server.started)
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as http:
            assert http.get("http://any.example/v1/models").status_code == 200
        server.should_exit = True
        thread.join(20.0)
    assert not path.exists()


def test_a_unix_socket_is_taken_over_from_the_dead_and_not_from_the_living(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    config = ServerConfig(uds=str(path))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with bound(config):
        with pytest.raises(ConfigError, match="another server listens"), bound(config):
            pass
        assert path.exists()
    path.write_text("a file")
    with pytest.raises(ConfigError, match="cannot listen on uds"), bound(config):
        pass
    assert path.read_text() == "a file"


def make_certificate(folder: Path, name: str) -> None:
    """Write cert.pem and key.pem for `name`."""
    subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    subprocess.run([*make, "-nodes", *subject, *files], check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
def test_certificates_that_change_are_loaded_again(tmp_path: Path) -> None:
    make_certificate(tmp_path, "one")
    config = ServerConfig(
        ssl_certfile=str(tmp_path / "cert.pem"), ssl_keyfile=str(tmp_path / "key.pem")
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")

    async def served() -> bytes:
        """The certificate that a client is shown."""
        server = await asyncio.start_server(
            lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context
        )
        port = server.sockets[0].getsockname()[1]
        shown = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
        server.close()
        return ssl.PEM_cert_to_DER_cert(shown)

    async def scenario() -> None:
        refreshing = asyncio.create_task(refresh_certificates(context, config, poll_s=0.01))
        await asyncio.sleep(0)
        first = await served()
        (tmp_path / "cert.pem").write_text("half a certificate")
        await asyncio.sleep(0.1)
        assert await served() == first
        make_certificate(tmp_path, "two")
        found = [await served()]
        for _ in range(1000):
            if b"two" in found[-1]:
                break
            await asyncio.sleep(0.01)
            found.append(await served())
        assert b"two" in found[-1]
        refreshing.cancel()

    asyncio.run(scenario())
