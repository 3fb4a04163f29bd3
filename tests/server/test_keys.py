"""Issued keys over HTTP: scopes, revocation, and the routes that administer keys."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from jaxserve.access.api_key import Scope
from jaxserve.access.key_store import KeyStore
from jaxserve.server import ServerConfig
from jaxserve.server.app import COMMON_ROUTES, ROUTES
from tests.server.world import World

ADMIN = "sk-of-the-configuration"
KEYS = "/v1/admin/keys"
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.sqlite"


@pytest.fixture(scope="module")
def http(path: Path) -> Iterator[TestClient]:
    config = ServerConfig(port=0, api_keys=(ADMIN,), key_store=str(path), tokenizer_info=True)
    with World(config=config) as world, world.http() as client:
        yield client


def headers(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def issued(http: TestClient, **fields: Any) -> Any:
    answer = http.post(KEYS, json={"tenant": "acme", **fields}, headers=headers(ADMIN))
    assert answer.status_code == 200, answer.text
    return answer.json()


def path_of(route: Route) -> str:
    return route.path.replace("{model_id:path}", "x").replace("{", "").replace("}", "")


# Beginnings of the paths that need a scope.
NEEDS = {
    Scope.ADMIN: ("/v1/admin/",),
    Scope.METRICS: ("/metrics", "/load"),
    Scope.FILES: ("/v1/files", "/v1/batches"),
}
COMMON = {path_of(route) for route in COMMON_ROUTES}


def needed(method: str, path: str) -> set[Scope]:
    """Return the scopes that a request needs. Other paths need `inference`."""
    if path in COMMON:
        return set()
    if (method, path) == ("POST", "/v1/batches"):
        return {Scope.FILES, Scope.INFERENCE}
    return {scope for scope, starts in NEEDS.items() if path.startswith(starts)} or {
        Scope.INFERENCE
    }


@pytest.mark.parametrize("lacking", [*Scope])
def test_a_route_refuses_exactly_the_keys_without_its_scopes(
    http: TestClient, lacking: Scope
) -> None:
    secret = issued(http, scopes=[scope for scope in Scope if scope is not lacking])["key"]
    for route in ROUTES:
        for method in route.methods or ():
            answer = http.request(method, path_of(route), headers=headers(secret))
            is_refused = lacking in needed(method, path_of(route))
            assert (answer.status_code == 403) == is_refused, (method, route.path)
            if is_refused and method != "HEAD":
                assert f"does not have the scope '{lacking}'" in answer.text


def test_a_key_answers_until_it_is_revoked(http: TestClient) -> None:
    key = issued(http)
    with_key = headers(key["key"])
    assert http.post("/v1/chat/completions", json=CHAT, headers=with_key).status_code == 200
    gone = http.delete(f"{KEYS}/{key['id']}", headers=headers(ADMIN)).json()
    assert gone["revoked_at"] is not None
    answer = http.post("/v1/chat/completions", json=CHAT, headers=with_key)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_a_key_of_the_command_line_answers_at_once(http: TestClient, path: Path) -> None:
    secret, _ = KeyStore(path).create("acme")
    answer = http.post("/v1/chat/completions", json=CHAT, headers=headers(secret))
    assert answer.status_code == 200


def test_keys_of_one_tenant_share_its_files(http: TestClient) -> None:
    first, second = issued(http)["key"], issued(http)["key"]
    stranger = issued(http, tenant="other")["key"]
    files = {"file": ("a.jsonl", b"{}")}
    made = http.post("/v1/files", files=files, data={"purpose": "batch"}, headers=headers(first))
    path = f"/v1/files/{made.json()['id']}"
    assert http.get(path, headers=headers(second)).status_code == 200
    assert http.get(path, headers=headers(stranger)).status_code == 404


def test_a_key_is_rotated_over_http(http: TestClient) -> None:
    old = issued(http, lifetime_s=500, note="app")
    path = f"{KEYS}/{old['id']}/rotate"
    new = http.post(path, json={"overlap_s": 0}, headers=headers(ADMIN)).json()
    assert (new["tenant"], new["note"], new["scopes"]) == ("acme", "app", old["scopes"])
    assert http.get("/v1/models", headers=headers(old["key"])).status_code == 401
    assert http.get("/v1/models", headers=headers(new["key"])).status_code == 200


def test_listed_keys_have_no_secrets(http: TestClient) -> None:
    key = issued(http, tenant="listed")
    answer = http.get(KEYS, params={"tenant": "listed"}, headers=headers(ADMIN))
    ((found),) = answer.json()["data"]
    assert "key" not in found
    assert found["id"] == key["id"]
    assert key["key"] not in http.get(KEYS, headers=headers(ADMIN)).text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tenant": "a b"}, "tenant"),
        ({"scopes": ["root"]}, "scopes"),
        ({"scopes": []}, "scopes"),
        ({"lifetime_s": 0}, "lifetime_s"),
        ({"lifetime_s": "soon"}, "lifetime_s"),
        ({"note": "x" * 300}, "note"),
    ],
)
def test_a_wrong_body_names_the_field(http: TestClient, fields: dict[str, Any], param: str) -> None:
    answer = http.post(KEYS, json={"tenant": "acme", **fields}, headers=headers(ADMIN))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(param)


def test_an_unknown_key_cannot_be_changed(http: TestClient) -> None:
    for method, path in (("DELETE", f"{KEYS}/nobody"), ("POST", f"{KEYS}/nobody/rotate")):
        answer = http.request(method, path, json={}, headers=headers(ADMIN))
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_a_server_without_a_store_says_so() -> None:
    with World() as world, world.http() as http:
        answer = http.get(KEYS)
        assert answer.status_code == 404
        assert "--key-store" in answer.json()["error"]["message"]


def test_a_store_without_keys_lets_nobody_in(tmp_path: Path) -> None:
    config = ServerConfig(port=0, key_store=str(tmp_path / "keys.sqlite"))
    with World(config=config) as world, world.http() as http:
        assert http.get("/v1/models").status_code == 401
        assert http.get("/health").status_code == 200
        (tmp_path / "keys.sqlite").unlink()
        assert http.get("/v1/models").status_code == 503
