"""Several engines behind one server: each serves its own model, and fails alone."""

from pathlib import Path

import httpx
import psutil

from tests.processes.world import TIMEOUT_S, Server, server, wait_for

TOKENS = 'vllm:generation_tokens_total{{engine="{}",model_name="{}"}}'
ENGINE_RESTARTS = 'jaxserve:engine_restarts_total{{engine="{}"}}'
RESTARTS = 'jaxserve:process_restarts_total{process="engine"}'


def health(made: Server) -> dict[str, bool]:
    """Whether the engine of each model is alive, as /health says."""
    answer = httpx.get(f"{made.url}/health", timeout=TIMEOUT_S)
    assert answer.status_code == 200
    return {name: each.get("is_alive", True) for name, each in answer.json()["models"].items()}


def serves(made: Server, model: str) -> bool:
    """Whether a model answers; it may be too early for any process to accept a connection."""
    try:
        return made.complete(model=model).status_code == 200
    except httpx.ConnectError:
        return False


def test_each_engine_serves_its_model_and_fails_alone(tmp_path: Path) -> None:
    starts, gate = tmp_path / "starts", tmp_path / "gate"
    second = {"names": ["second"], "starts": str(starts), "gate": str(gate), "gates_from": 2}
    with server(tmp_path, others=[second]) as made:
        listed = httpx.get(f"{made.url}/v1/models", timeout=TIMEOUT_S).json()["data"]
        assert [each["id"] for each in listed] == ["tiny", "alias", "second"]
        for model, max_tokens in (("alias", 5), ("second", 7), (None, 3)):
            answer = made.complete(model=model, max_tokens=max_tokens, ignore_eos=True)
            assert answer.json()["usage"]["completion_tokens"] == max_tokens
        samples = made.samples()
        assert samples[TOKENS.format(0, "tiny")] == 5 + 3
        assert samples[TOKENS.format(1, "second")] == 7

        psutil.Process(int(starts.read_text())).kill()
        wait_for(lambda: made.complete(model="second").status_code == 503)
        assert made.complete(model="tiny").status_code == 200
        assert made.is_ready()
        assert health(made) == {"tiny": True, "second": False}

        gate.touch()
        wait_for(lambda: made.complete(model="second").status_code == 200)
        assert health(made) == {"tiny": True, "second": True}
        samples = made.samples()
        assert [samples[ENGINE_RESTARTS.format(number)] for number in (0, 1)] == [0, 1]
        assert samples[RESTARTS] == 1


def test_the_server_is_ready_when_all_engines_are(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    second = {"names": ["second"], "gate": str(gate)}
    with server(tmp_path, others=[second], wait=False) as made:
        wait_for(lambda: serves(made, "tiny"))
        assert made.status("/ready") == 503
        answer = made.complete(model="second")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "loading")
        gate.touch()
        made.wait_ready()
        assert made.is_ready()
        assert made.complete(model="second").status_code == 200


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    with server(tmp_path, others=[{"names": ["other", "alias"]}], wait=False) as made:
        assert made.process.stdout is not None
        assert "two models have the name 'alias'" in made.process.stdout.readline()
        assert made.process.wait(TIMEOUT_S) == 1
