"""Probes, models and the version; and a server whose engine is gone."""

from pathlib import Path

import httpx
from starlette.testclient import TestClient

import jaxserve
from jaxserve.observability.metrics import Metrics
from jaxserve.server import ServerConfig, create_app
from tests.server.world import World, events, wait_for

BODY = {"prompt": "hello", "max_tokens": 100, "ignore_eos": True}


def test_probes_of_a_working_server(http: TestClient) -> None:
    health = http.get("/health")
    assert health.status_code == 200
    kernels = {"paged_attention": {"backend": "fake", "refusals": {"fast": "not here"}}}
    assert health.json() == {"status": "ok", "models": {"tiny/model": {"kernels": kernels}}}
    assert http.get("/ready").status_code == 200
    assert http.get("/version").json() == {"version": jaxserve.__version__}


def test_while_nothing_is_loaded_probes_say_so_and_requests_are_told_to_come_back(
    tmp_path: Path,
) -> None:
    app = create_app((), metrics=Metrics(max_model_len=1), config=ServerConfig(), folder=tmp_path)
    with TestClient(app, base_url="http://localhost") as http:
        assert http.get("/live").json() == {"status": "alive"}
        assert http.get("/metrics").status_code == 200
        for method, path in (
            ("GET", "/health"),
            ("GET", "/ping"),
            ("GET", "/ready"),
            ("GET", "/v1/models"),
            ("GET", "/v1/models/x"),
            ("POST", "/v1/completions"),
        ):
            response = http.request(method, path, json={**BODY, "model": "x"})
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "loading"
            assert response.headers["retry-after"] == "5"


def test_models_are_listed_under_each_name(http: TestClient) -> None:
    answer = http.get("/v1/models").json()
    assert [entry["id"] for entry in answer["data"]] == ["tiny/model", "alias"]
    assert {entry["root"] for entry in answer["data"]} == {"tiny/model"}
    assert answer["data"][0]["max_model_len"] == 128


def test_a_model_is_found_by_an_id_with_slashes(http: TestClient) -> None:
    assert http.get("/v1/models/tiny/model").json()["id"] == "tiny/model"
    assert http.get("/v1/models/tiny%2Fmodel").json()["id"] == "tiny/model"
    assert http.get("/v1/models/tiny").status_code == 404


def test_an_answer_names_the_model_as_it_was_asked_for(http: TestClient) -> None:
    body = {"prompt": "x", "max_tokens": 1}
    assert http.post("/v1/completions", json=body).json()["model"] == "tiny/model"
    assert http.post("/v1/completions", json={**body, "model": "alias"}).json()["model"] == "alias"


def test_a_dead_engine_shows_in_probes_and_answers() -> None:
    with World(step_s=0.01) as world:
        http = world.http()
        with http.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: {")
            world.runner.is_broken = True
            rest = events(lines)
        assert rest[-1]["error"]["code"] == "engine_dead"
        assert "gone" not in str(rest[-1])
        wait_for(lambda: not world.client.is_alive)
        for method, path in (("GET", "/health"), ("GET", "/ready"), ("POST", "/v1/completions")):
            response = http.request(method, path, json=BODY)
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "engine_dead"
        assert http.get("/live").status_code == 200


def test_an_engine_that_hangs_is_not_healthy() -> None:
    with World(step_s=0.5, hang_timeout_s=0.05) as world:
        http = world.http()
        with http.stream("POST", "/v1/completions", json={**BODY, "stream": True, "max_tokens": 2}):
            wait_for(lambda: http.get("/health").status_code == 503)
            assert not world.client.is_alive
        world.runner.step_s = 0.0


def test_the_load_is_what_is_being_answered() -> None:
    with (
        World(step_s=0.01) as world,
        world.listening() as address,
        httpx.Client(base_url=address.url) as http,
    ):
        assert http.get("/load").json() == {"server_load": 0}
        with http.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as response:
            lines = response.iter_lines()  # kept, as its end would end the stream
            next(lines)
            assert http.get("/load").json() == {"server_load": 1}
        wait_for(lambda: http.get("/load").json() == {"server_load": 0})


def test_one_path_takes_what_a_generating_model_is_asked(http: TestClient) -> None:
    chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    assert http.post("/invocations", json=chat).json()["object"] == "chat.completion"
    text = {"prompt": "x", "max_tokens": 1}
    assert http.post("/invocations", json=text).json()["object"] == "text_completion"
    with http.stream("POST", "/invocations", json={**text, "stream": True}) as response:
        assert events(response.iter_lines())[-1] is None
    refused = http.post("/invocations", json={"input": "x"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")
    assert http.post("/invocations", json={**text, "model": "nobody"}).status_code == 404
    assert http.post("/invocations", content=b"{}").status_code == 415
