"""Authentication, authorization, and the headers of every response."""

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from jaxserve.server import ServerConfig
from jaxserve.server.app import ROUTES
from tests.server.world import World

KEY = "sk-right"
ALLOWED = {"authorization": f"Bearer {KEY}"}
OPEN = {"/api/hello", "/health", "/live", "/ping", "/ready"}
PATHS = sorted(route.path.replace("{model_id:path}", "x") for route in ROUTES)


@pytest.fixture(scope="module")
def guarded() -> Iterator[TestClient]:
    config = ServerConfig(
        port=0, api_keys=(KEY, "sk-other"), allowed_origins=("https://a.example",)
    )
    with World(config=config) as world, world.http() as client:
        yield client


@pytest.mark.parametrize("path", [*PATHS, "/nothing", "/v1/", "//health", "/health/"])
def test_every_path_but_the_probes_asks_for_a_key(guarded: TestClient, path: str) -> None:
    for method in ("GET", "POST"):
        # In full: by itself, //health would be a host.
        status = guarded.request(method, f"http://localhost{path}").status_code
        assert (status == 401) == (path not in OPEN)


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        KEY,
        "Bearer",
        "Bearer ",
        "Bearer sk-wrong",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Basic {KEY}",
        "Bearer \xff\xfe",
    ],
)
def test_a_wrong_key_is_401(guarded: TestClient, authorization: str) -> None:
    headers = [(b"authorization", authorization.encode("latin-1"))]
    response = guarded.get("/v1/models", headers=headers)
    assert response.status_code == 401
    # OpenAI's words, by which LiteLLM tells this error from other bad requests.
    assert response.json()["error"]["message"].startswith("Incorrect API key provided")
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert KEY not in response.text


@pytest.mark.parametrize("key", [KEY, "sk-other"])
def test_each_key_opens(guarded: TestClient, key: str) -> None:
    for scheme in ("Bearer", "bearer"):
        headers = {"authorization": f"{scheme} {key}"}
        assert guarded.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["x/health?", "server/health#", "health@server", "a\\health"])
def test_the_host_header_opens_nothing(guarded: TestClient, host: str) -> None:
    assert guarded.get("/v1/models", headers={"host": host}).status_code == 401


def test_cached_prefixes_are_not_shared_between_keys(guarded: TestClient) -> None:
    body = {"prompt": "the quick brown fox jumps over the lazy dog", "max_tokens": 1}

    def cached(key: str) -> int:
        headers = {"authorization": f"Bearer {key}"}
        usage = guarded.post("/v1/completions", json=body, headers=headers).json()["usage"]
        count: int = usage["prompt_tokens_details"]["cached_tokens"]
        return count

    assert cached(KEY) == 0
    assert cached("sk-other") == 0
    assert cached(KEY) > 0


def test_the_config_does_not_show_its_keys() -> None:
    assert KEY not in repr(ServerConfig(api_keys=(KEY,)))


def test_a_web_page_may_call_only_from_an_allowed_origin(
    guarded: TestClient, http: TestClient
) -> None:
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    answer = guarded.options("/v1/chat/completions", headers=preflight)
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    stranger = {**preflight, "origin": "https://b.example"}
    answer = guarded.options("/v1/chat/completions", headers=stranger)
    assert "access-control-allow-origin" not in answer.headers
    answer = http.options("/v1/chat/completions", headers=preflight)
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", ["/health", "/nothing", "/v1/completions"])
def test_every_answer_has_a_request_id_of_its_own(http: TestClient, path: str) -> None:
    first, second = (http.get(path).headers["x-request-id"] for _ in range(2))
    assert first != second


def test_a_clients_request_id_comes_back(http: TestClient) -> None:
    assert http.get("/health", headers={"x-request-id": "mine"}).headers["x-request-id"] == "mine"


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, "\x7f"])
def test_an_unfit_request_id_is_replaced(http: TestClient, sent: str) -> None:
    answer = http.get("/health", headers={"x-request-id": sent})
    assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("POST", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("GET", "/health/", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("BREW", "/tokenize", 405, "method_not_allowed"),
        ("GET", "/" + "x" * 5000, 404, "not_found"),
    ],
)
def test_wrong_paths_and_methods_get_openais_error(
    http: TestClient, method: str, path: str, status: int, code: str
) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["code"] == code
    assert len(error["message"]) < 250


def test_a_body_that_says_it_is_too_long_is_not_read() -> None:
    with World(config=ServerConfig(port=0, max_body_bytes=1000)) as world:
        http = world.http()
        small = {"prompt": "hello", "max_tokens": 1}
        assert http.post("/v1/completions", json=small).status_code == 200
        declared = http.post("/v1/completions", json={**small, "user": "x" * 1000})
        streamed = http.post(
            "/v1/completions",
            content=(b"x" * 100 for _ in range(11)),
            headers={"content-type": "application/json"},
        )
    for response in (declared, streamed):
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"
        assert "1000 bytes" in response.json()["error"]["message"]
