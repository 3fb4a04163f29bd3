"""Killed processes are restarted at any stage, and clients get an error."""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest

from tests.processes.test_server import AT_ONCE_S, LONG
from tests.processes.world import PROGRAMS, TIMEOUT_S, Server, server, wait_for
from tests.server.world import events, write_tokenizer

REAL_API = {"api": "jaxserve.processes.api"}
RESTARTS = 'jaxserve:process_restarts_total{{process="{}"}}'
INTERRUPTED = "jaxserve:interrupted_requests_total"


def how_ended(lines: Iterator[str]) -> str:
    """How a stream ended: whole, with an error event, or cut."""
    try:
        last = events(lines)[-1]
    except httpx.TransportError:
        return "cut"
    return "whole" if last is None else str(last["error"]["code"])


def wait_api(made: Server, module: str = PROGRAMS["api"]) -> psutil.Process:
    """Wait until there is one API process, the only one, and return it."""
    wait_for(lambda: len(made.children(module)) == 1)
    return made.children(module)[0]


def test_api_processes_with_a_real_tokenizer_are_replaced_again_and_again(tmp_path: Path) -> None:
    tokenizer = str(write_tokenizer(tmp_path))
    with server(tmp_path, programs=REAL_API, tokenizer=tokenizer, step_s=0.002) as made:
        engine = made.engine
        for _ in range(2):
            api = wait_api(made, REAL_API["api"])
            with made.stream(**LONG) as lines:
                api.kill()
                assert how_ended(lines) == "cut"
            made.wait_replaced(api)
            assert made.complete().status_code == 200
        assert made.engine.pid == engine.pid
        assert made.samples()[RESTARTS.format("api")] == 2


def test_every_process_is_replaced_whichever_dies_with_it(tmp_path: Path) -> None:
    config = {"api_server_count": 2, "max_restarts": 100, "restart_window_s": 0.01}
    with server(tmp_path, config=config, step_s=0.002) as made:
        for num_apis in (0, 1, 2):
            victims = [made.engine, *made.apis[:num_apis]]
            with ExitStack() as stack:
                streams = [stack.enter_context(made.stream(**LONG)) for _ in range(6)]
                for victim in victims:
                    victim.kill()
                ends = {how_ended(lines) for lines in streams}
            assert ends <= {"cut", "engine_dead"}
            assert num_apis or ends == {"engine_dead"}
            made.wait_replaced(*victims)
            wait_for(lambda: len(made.apis) == 2 and made.running() == 0)
            assert made.complete().status_code == 200
        samples = made.samples()
        assert samples[RESTARTS.format("engine")] == 3
        assert samples[RESTARTS.format("api")] == 3


def test_requests_that_an_engine_takes_with_it_are_counted(tmp_path: Path) -> None:
    with server(tmp_path, step_s=0.002) as made:
        assert made.samples()[INTERRUPTED] == 0
        engine = made.engine
        with made.stream(**LONG) as one, made.stream(**LONG) as other:
            engine.kill()
            assert [how_ended(lines) for lines in (one, other)] == ["engine_dead"] * 2
        made.wait_replaced(engine)
        samples = made.samples()
        assert samples[INTERRUPTED] == 2
        assert samples[RESTARTS.format("engine")] == 1
        assert samples[RESTARTS.format("api")] == 0


def test_an_api_process_that_dies_while_the_engine_is_away_is_replaced(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    starts = str(tmp_path / "starts")
    with server(tmp_path, starts=starts, gate=str(gate), gates_from=2) as made:
        (api,) = made.apis
        made.engine.kill()
        wait_for(lambda: made.status("/ready") == 503)
        api.kill()
        wait_for(lambda: [each.pid for each in made.apis] not in ([api.pid], []))
        gate.touch()
        made.wait_replaced(api)
        assert made.complete().status_code == 200


@pytest.mark.parametrize("kind", ["engine", "api"])
def test_a_process_killed_before_the_first_is_ready_is_replaced(tmp_path: Path, kind: str) -> None:
    gate = tmp_path / "gate"
    with server(tmp_path, wait=False, gate=str(gate)) as made:
        wait_for(lambda: bool(made.apis and made.children(PROGRAMS["engine"])))
        (made.engine if kind == "engine" else made.apis[0]).kill()
        gate.touch()
        made.wait_ready()
        assert made.complete().status_code == 200
        assert made.samples()[RESTARTS.format(kind)] == 1


def test_a_later_api_process_that_fails_starts_again(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    with server(tmp_path, tokenizer=str(broken)) as made:
        api = wait_api(made)
        broken.touch()
        api.kill()
        wait_for(lambda: "the tokenizer is broken" in (tmp_path / "log").read_text("utf-8"))
        broken.unlink()
        made.wait_replaced(api)
        assert made.complete().status_code == 200


def test_a_first_api_process_that_fails_ends_the_server(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    with server(tmp_path, wait=False, tokenizer=str(broken)) as made:
        assert made.process.wait(TIMEOUT_S) == 1
        assert made.process.stdout is not None
        assert made.process.stdout.read() == "the tokenizer is broken\n"


def test_a_server_that_gives_up_lets_answers_end(tmp_path: Path) -> None:
    # On a busy machine answers take longer than a server waits by default.
    config = {"api_server_count": 2, "max_restarts": 0, "shutdown_timeout_s": 120.0}
    with server(tmp_path, config=config, step_s=0.002) as made, ExitStack() as stack:
        fields = {"max_tokens": 500, "ignore_eos": True}
        streams = [stack.enter_context(made.stream(**fields)) for _ in range(16)]
        made.apis[0].kill()
        ends = [how_ended(lines) for lines in streams]
        # Which process has which connection is the kernel's choice, and none of a process's ends
        # otherwise than the others.
        assert set(ends) <= {"cut", "whole"}
        assert "whole" in ends
        assert made.process.wait(TIMEOUT_S) == 3


def test_sigterm_ends_a_server_that_waits_to_restart_a_process(tmp_path: Path) -> None:
    with server(tmp_path, config={"api_server_count": 2, "restart_delay_s": 600.0}) as made:
        victims = [made.engine, made.apis[0]]
        for victim in victims:
            victim.kill()
        wait_for(lambda: (tmp_path / "log").read_text("utf-8").count("killed by SIGKILL") == 2)
        began_s = time.monotonic()
        made.process.send_signal(signal.SIGTERM)
        assert made.process.wait(TIMEOUT_S) == 0
        assert time.monotonic() - began_s < AT_ONCE_S
