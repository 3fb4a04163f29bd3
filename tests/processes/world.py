"""Whole servers of several processes, around the fake device."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.server import world as server_world

ROOT = Path(__file__).resolve().parents[2]
# For every wait. Starting a process takes a second of a core, and cores may be busy.
TIMEOUT_S = 60.0
SCRIPT = """
import asyncio, json, sys
from jaxserve.config.engine import EngineOptions
from jaxserve.errors import JaxserveError
from jaxserve.processes.supervisor import Programs, Supervisor
from jaxserve.config.server import ServerConfig
from jaxserve.server.transport.listener import bind

models, config, programs = map(json.loads, sys.argv[1:])
config = ServerConfig(port=0, **config)

async def main(listener):
    def announce(names):
        print("ready", *names, flush=True)
    print(listener.getsockname()[1], flush=True)
    return await Supervisor(
        [EngineOptions(model=json.dumps(model)) for model in models],
        config,
        listener=listener,
        announce=announce,
        programs=Programs(**programs),
    ).run()

assert not {"jax", "numpy", "transformers", "zmq"} & sys.modules.keys()
with bind(config) as listener:
    try:
        sys.exit(asyncio.run(main(listener)))
    except JaxserveError as error:
        print(error, flush=True)
        sys.exit(error.exit_status)
"""
PROGRAMS = {"engine": "tests.processes.fake_engine", "api": "tests.processes.fake_api"}


@dataclass
class Server:
    """A server whose supervisor is `process`."""

    process: subprocess.Popen[str]
    url: str
    folder: Path

    def children(self, module: str) -> list[psutil.Process]:
        """Its living children that run a module."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            try:
                if module in child.cmdline():
                    found.append(child)
            except psutil.NoSuchProcess:
                pass
        return found

    @property
    def engine(self) -> psutil.Process:
        (engine,) = self.children(PROGRAMS["engine"])
        return engine

    @property
    def apis(self) -> list[psutil.Process]:
        return self.children(PROGRAMS["api"])

    def wait_replaced(self, *killed: psutil.Process) -> None:
        """Wait until the server is ready without the processes that were killed."""
        pids = {process.pid for process in killed}

        def is_replaced() -> bool:
            children = psutil.Process(self.process.pid).children()
            return not pids & {child.pid for child in children} and self.is_ready()

        wait_for(is_replaced)

    def log(self) -> list[dict[str, Any]]:
        """The lines that its children have logged so far."""
        lines = (self.folder.parent / "log").read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines if line.startswith('{"')]

    def wait_ready(self) -> None:
        """Wait until the server says that requests are welcome."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline().startswith("ready tiny alias")

    def complete(self, *prompt_ids: int, **fields: Any) -> httpx.Response:
        body = {"prompt": list(prompt_ids or (1, 2, 3)), "max_tokens": 5, **fields}
        # A connection of its own, so that any process may get it.
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=TIMEOUT_S)

    @contextmanager
    def stream(self, *prompt_ids: int, **fields: Any) -> Iterator[Iterator[str]]:
        """The lines of an answer under way, its first one read."""
        body = {"prompt": list(prompt_ids or (1, 2, 3)), "max_tokens": 2000, "stream": True}
        with httpx.stream(
            "POST", f"{self.url}/v1/completions", json={**body, **fields}, timeout=TIMEOUT_S
        ) as response:
            assert response.status_code == 200, response.read()
            lines = response.iter_lines()
            next(lines)
            yield lines

    def status(self, path: str) -> int:
        return httpx.get(self.url + path, timeout=TIMEOUT_S).status_code

    def is_ready(self) -> bool:
        return self.status("/ready") == 200

    def samples(self) -> dict[str, float]:
        """Every sample of /metrics by its name and labels."""
        lines = httpx.get(f"{self.url}/metrics", timeout=TIMEOUT_S).text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def running(self) -> float:
        return self.samples()['vllm:num_requests_running{engine="0",model_name="tiny"}']


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    server_world.wait_for(condition, timeout_s=TIMEOUT_S)


@contextmanager
def server(
    tmp_path: Path,
    *,
    config: dict[str, Any] | None = None,
    programs: dict[str, str] | None = None,
    wait: bool = True,
    others: Sequence[dict[str, Any]] = (),
    **model: Any,
) -> Iterator[Server]:
    """A server; at the end nothing of it may be left, whatever was done to it.

    model: settings of its engine; others: those of further engines.
    """
    folder = tmp_path / "t"
    folder.mkdir()
    settings = {"restart_delay_s": 0.05, **(config or {})}
    modules = {**PROGRAMS, **(programs or {})}
    arguments = [json.dumps(each) for each in ([model, *others], settings, modules)]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *arguments],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(folder)},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            made = Server(process, f"http://127.0.0.1:{int(process.stdout.readline())}", folder)
            if wait:
                made.wait_ready()
            everyone = psutil.Process(process.pid).children(recursive=True)
            yield made
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(TIMEOUT_S)
        finally:
            process.kill()
    wait_for(lambda: not any(map(is_running, everyone)))
    wait_for(lambda: not list(folder.iterdir()))


def is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
