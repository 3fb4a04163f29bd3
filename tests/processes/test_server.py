"""A server of several processes: who does what, and what becomes of the others when one ends."""

import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import zmq

from jaxserve.api.sampling_params import SamplingParams
from jaxserve.engine.sequence import choice_seed
from jaxserve.processes.supervisor import STOP_TIMEOUT_S
from tests.engine.world import words
from tests.fakes import solo_run
from tests.processes.world import TIMEOUT_S, Server, server, wait_for
from tests.server.world import events

LONG = {"max_tokens": 2000, "ignore_eos": True}
# Time limit for answers that do not wait for the drain timeout, on a busy machine.
AT_ONCE_S = 20.0
DEATH = "the engine has ended: the process was killed by SIGKILL"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of two API processes that stays as it is."""
    with server(tmp_path_factory.mktemp("two"), config={"api_server_count": 2}) as made:
        yield made


def expected(prompt_ids: tuple[int, ...], *, seed: int, max_tokens: int, index: int = 0) -> str:
    """Return the answer of the fake device's model."""
    params = SamplingParams(seed=seed, max_tokens=max_tokens, ignore_eos=True)
    return words(
        solo_run(
            prompt_ids,
            params,
            seed=choice_seed(seed, index),
            vocab_size=64,
            max_length=4096,
        )
    )


@contextmanager
def gated_restarts(tmp_path: Path, **config: float) -> Iterator[tuple[Server, Path]]:
    """A server whose second engine becomes ready when a file is there."""
    gate = tmp_path / "gate"
    with server(
        tmp_path,
        config=config,
        step_s=0.002,
        starts=str(tmp_path / "starts"),
        gate=str(gate),
        gates_from=2,
    ) as made:
        yield made, gate


# Requests


def test_many_clients_get_their_own_answers(two: Server) -> None:
    def ask(seed: int) -> str:
        fields = {"seed": seed, "max_tokens": 40, "ignore_eos": True}
        answer: str = two.complete(1, seed % 50, **fields).json()["choices"][0]["text"]
        return answer

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(48)))
    assert answers == [expected((1, s % 50), seed=s, max_tokens=40) for s in range(48)]


def test_both_api_processes_answer(two: Server) -> None:
    answers: Counter[str] = Counter()
    for _ in range(20):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: two.complete().raise_for_status(), range(16)))
        answers = Counter(
            line["process"] for line in two.log() if line.get("path") == "/v1/completions"
        )
        if len(answers) == 2 and min(answers.values()) >= 8:
            break
    assert len(answers) == 2, answers
    assert min(answers.values()) >= 8, answers


def test_metrics_are_those_of_all_processes_whoever_is_asked(two: Server) -> None:
    before = two.samples()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: two.complete(max_tokens=7, ignore_eos=True), range(16)))
    answered = 'jaxserve:http_requests_total{handler="/v1/completions",method="POST",status="200"}'
    tokens = 'vllm:generation_tokens_total{engine="0",model_name="tiny"}'
    gaps = 'vllm:inter_token_latency_seconds_count{engine="0",model_name="tiny"}'
    for _ in range(8):
        now = two.samples()
        assert now[answered] - before.get(answered, 0) == 16
        assert now[tokens] - before[tokens] == 16 * 7
        assert now[gaps] - before[gaps] == 16 * 6


def test_a_stop_string_ends_an_answer_where_its_text_does(two: Server) -> None:
    whole = expected((1, 2), seed=3, max_tokens=60)
    stop = whole[50:56]
    cut = whole[: whole.index(stop)]
    fields = {"seed": 3, "ignore_eos": True, "max_tokens": 60, "stop": stop}
    answer = two.complete(1, 2, **fields, return_token_ids=True).json()
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (cut, "stop", stop)
    said = words(choice["token_ids"])
    assert said.startswith(cut + stop)
    assert words(choice["token_ids"][:-1]) in whole[: len(cut + stop)]
    assert answer["usage"]["completion_tokens"] == len(choice["token_ids"])
    wait_for(lambda: two.running() == 0)


def test_what_the_engine_refuses_is_told_to_the_client(two: Server) -> None:
    answer = two.complete(*range(40), max_tokens=5000)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_a_client_that_leaves_ends_its_request(two: Server) -> None:
    ends = 'vllm:request_success_total{{engine="0",finished_reason="{}",model_name="tiny"}}'
    before = two.samples()
    with two.stream(**LONG):
        pass
    aborts, lengths = ends.format("abort"), ends.format("length")
    wait_for(lambda: two.samples()[aborts] == before[aborts] + 1)
    assert two.samples()[lengths] == before[lengths]
    wait_for(lambda: two.running() == 0)


def test_the_model_is_the_engines(two: Server) -> None:
    answer = httpx.get(f"{two.url}/health").json()
    kernels = {"paged_attention": {"backend": "fake", "refusals": {"fast": "not here"}}}
    assert answer == {"status": "ok", "models": {"tiny": {"kernels": kernels}}}
    models = httpx.get(f"{two.url}/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["tiny", "alias"]


def test_nobody_else_may_look_into_the_folder_of_sockets(two: Server) -> None:
    (folder,) = two.folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    others = {path.stem for path in folder.iterdir() if not path.is_socket()}
    assert others == {"batches", "responses"}


# Starting


def test_probes_are_answered_while_the_engine_loads(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with server(tmp_path, wait=False, gate=str(gate)) as made:

        def health() -> Any:
            try:
                return httpx.get(f"{made.url}/health").status_code
            except httpx.ConnectError:
                return None

        wait_for(lambda: health() is not None)
        assert health() == 503
        assert made.status("/live") == 200
        assert made.status("/ready") == 503
        refused = made.complete()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "loading")
        assert int(refused.headers["retry-after"]) >= 1
        gate.touch()
        made.wait_ready()
        assert made.status("/ready") == 200
        assert health() == 200


def test_a_mistake_of_the_user_ends_the_server_with_its_words(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    with server(tmp_path, wait=False, mistake="there are no weights", starts=str(starts)) as made:
        assert made.process.stdout is not None
        assert made.process.stdout.readline() == "there are no weights\n"
        assert made.process.wait(TIMEOUT_S) == 1
    assert len(starts.read_text().split()) == 1


def test_a_start_that_hangs_ends_the_server_with_what_hung(tmp_path: Path) -> None:
    config = {"engine_start_timeout_s": 3.0}
    with server(tmp_path, wait=False, config=config, hangs_s=600.0) as made:
        assert made.process.stdout is not None
        assert made.process.stdout.readline().startswith(
            "the engine does not become ready: it has not used the processor for 3 s"
        )
        assert made.process.wait(TIMEOUT_S) == 1


def test_a_start_that_works_may_take_longer_than_one_that_hangs(tmp_path: Path) -> None:
    with server(tmp_path, config={"engine_start_timeout_s": 1.0}, works_s=3.0) as made:
        assert made.complete().status_code == 200


# Death of an engine


def test_when_the_engine_is_killed_streams_end_and_a_new_one_serves(tmp_path: Path) -> None:
    with gated_restarts(tmp_path) as (made, gate):
        first = made.engine.pid
        before = made.samples()
        apis = [api.pid for api in made.apis]
        with made.stream(**LONG) as lines:
            made.engine.kill()
            rest = events(lines)
        assert rest[-1]["error"]["code"] == "engine_dead"
        for path in ("/health", "/ready"):
            answer = httpx.get(made.url + path)
            assert answer.status_code == 503
            assert answer.json()["error"]["message"] == DEATH
        refused = made.complete()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_dead")
        assert int(refused.headers["retry-after"]) >= 1
        gate.touch()
        wait_for(made.is_ready)
        assert made.engine.pid != first
        assert [api.pid for api in made.apis] == apis
        fields = {"seed": 1, "max_tokens": 30, "ignore_eos": True}
        answer = made.complete(1, 2, **fields).json()
        assert answer["choices"][0]["text"] == expected((1, 2), seed=1, max_tokens=30)
        after = made.samples()
        counts = {name for name in before if name.partition("{")[0].endswith("_total")}
        assert all(after[name] >= before[name] for name in counts)


@pytest.mark.parametrize(
    ("token", "reason"),
    [(13, "the engine has failed; its log says why"), (14, "has not finished a step for 1.5 s")],
)
def test_an_engine_that_fails_or_hangs_is_replaced(tmp_path: Path, token: int, reason: str) -> None:
    with gated_restarts(tmp_path, engine_hang_timeout_s=1.5) as (made, gate):
        with made.stream(**LONG) as lines, made.stream(**LONG) as others:
            answer = made.complete(token, 2)
            assert answer.status_code == 503
            assert reason in answer.json()["error"]["message"]
            for each in (lines, others):
                assert events(each)[-1]["error"]["code"] == "engine_dead"
        assert reason in httpx.get(f"{made.url}/health").json()["error"]["message"]
        gate.touch()
        wait_for(made.is_ready)
        assert made.complete().status_code == 200


def test_a_hang_is_found_though_metrics_are_scraped(tmp_path: Path) -> None:
    with gated_restarts(tmp_path, engine_hang_timeout_s=1.0) as (made, gate):
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(made.complete, 14, 2)
            deadline_s = time.monotonic() + TIMEOUT_S
            while not answer.done() and time.monotonic() < deadline_s:
                made.samples()
                time.sleep(0.1)
            assert answer.result(0).status_code == 503
        gate.touch()
        wait_for(made.is_ready)


def test_a_server_whose_engine_ends_again_and_again_ends_with_an_error(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    config = {"max_restarts": 2}
    with server(tmp_path, config=config, starts=str(starts), crashes_from=2) as made:
        made.engine.kill()
        assert made.process.wait(TIMEOUT_S) == 3
        assert made.process.stdout is not None
        said = made.process.stdout.read()
        assert said.startswith("the process 'engine' ended more than 2 times within 600 s")
    assert len(starts.read_text().split()) == 3


# Death of others


def test_an_api_process_that_dies_is_replaced_and_its_requests_end(tmp_path: Path) -> None:
    with server(tmp_path, config={"api_server_count": 2}, step_s=0.002) as made:
        engine = made.engine.pid
        before = made.samples()
        victims = {api.pid for api in made.apis}
        with made.stream(**LONG), made.stream(**LONG), made.stream(**LONG):
            wait_for(lambda: made.running() == 3)
            for api in made.apis:
                api.kill()
        wait_for(lambda: len(made.apis) == 2 and not victims & {api.pid for api in made.apis})
        wait_for(made.is_ready)
        wait_for(lambda: made.running() == 0)
        assert made.engine.pid == engine
        assert made.complete().status_code == 200
        after = made.samples()
        counts = {name for name in before if "http_requests" in name}
        assert all(after[name] >= before[name] for name in counts)


def test_an_api_process_that_hangs_is_replaced(tmp_path: Path) -> None:
    with server(tmp_path, config={"api_hang_timeout_s": 3.0}) as made:
        (api,) = made.apis
        api.suspend()
        wait_for(lambda: [each.pid for each in made.apis] not in ([api.pid], []))
        wait_for(made.is_ready)
        assert made.complete().status_code == 200
    assert "it has shown no sign of life for 3 s" in (tmp_path / "log").read_text("utf-8")


def test_a_server_whose_api_processes_hang_again_and_again_ends(tmp_path: Path) -> None:
    with server(tmp_path, config={"api_hang_timeout_s": 3.0, "max_restarts": 0}) as made:
        made.apis[0].suspend()
        assert made.process.wait(TIMEOUT_S) == 3
        assert made.process.stdout is not None
        said = made.process.stdout.read()
        assert said.startswith("the process 'api 0' ended more than 0 times within 600 s")
        assert said.endswith("it has shown no sign of life for 3 s\n")


def test_when_the_supervisor_is_killed_nothing_lives_on(tmp_path: Path) -> None:
    with server(tmp_path, config={"api_server_count": 2}) as made:
        assert len(made.apis) == 2
        made.process.kill()
    # The context has waited for the ends of all, and for the sockets to be gone.


def test_a_stranger_who_talks_rubbish_to_the_engine_harms_nobody(tmp_path: Path) -> None:
    with server(tmp_path, step_s=0.002) as made, made.stream(max_tokens=200) as lines:
        (folder,) = made.folder.iterdir()
        (path,) = folder.glob("engine-*")
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.LINGER, 1000)
            dealer.connect(f"ipc://{path}")
            for rubbish in ([b""], [b"\xc1"], [b"\x91\x09"], [b"\x93\x01\x01\x01", b"abc"]):
                dealer.send_multipart(rubbish)
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(str(path))
                raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
            rest = events(lines)
        assert rest[-1] is None
        assert made.complete().status_code == 200


# Stopping


def test_sigterm_lets_answers_finish_and_exits_with_0(tmp_path: Path) -> None:
    with server(tmp_path, step_s=0.005) as made:
        with made.stream(max_tokens=200, ignore_eos=True) as lines:
            made.process.send_signal(signal.SIGTERM)
            rest = events(lines)
        assert rest[-1] is None
        assert rest[-2]["choices"][0]["finish_reason"] == "length"
        assert made.process.wait(TIMEOUT_S) == 0
        with pytest.raises(httpx.ConnectError):
            made.status("/health")


def test_what_outlasts_the_time_to_drain_ends_with_an_error(tmp_path: Path) -> None:
    with server(tmp_path, config={"shutdown_timeout_s": 0.5}, step_s=0.05) as made:
        with made.stream(**LONG) as lines:
            began_s = time.monotonic()
            made.process.send_signal(signal.SIGTERM)
            rest = events(lines)
        assert rest[-1]["error"]["code"] == "shutting_down"
        assert made.process.wait(TIMEOUT_S) == 0
        assert 0.4 < time.monotonic() - began_s < AT_ONCE_S


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with server(tmp_path, step_s=0.05) as made, made.stream(**LONG):
        began_s = time.monotonic()
        made.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert made.process.poll() is None
        made.process.send_signal(signal.SIGTERM)
        assert made.process.wait(TIMEOUT_S) == 1
        assert time.monotonic() - began_s < AT_ONCE_S


def test_an_engine_that_compiles_in_the_background_ends_when_told_to(tmp_path: Path) -> None:
    with server(tmp_path, compiles_s=600.0) as made:
        engine = made.engine
        began_s = time.monotonic()
        made.process.send_signal(signal.SIGTERM)
        assert engine.wait(TIMEOUT_S) is None  # it has ended; how, its parent alone knows
        assert time.monotonic() - began_s < STOP_TIMEOUT_S  # when it would be killed
        assert made.process.wait(TIMEOUT_S) == 0


def test_sigterm_while_the_engine_loads_ends_the_server(tmp_path: Path) -> None:
    with server(tmp_path, wait=False, gate=str(tmp_path / "none")) as made:
        wait_for(lambda: len(made.apis) == 1)
        made.process.send_signal(signal.SIGTERM)
        assert made.process.wait(TIMEOUT_S) == 0
