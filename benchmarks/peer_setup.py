"""Run the programs of peers.py one after the other, with servers where needed."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any
from urllib.error import URLError
from urllib.request import urlopen

PREFIX = "RESULT "
START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 60.0


class PeerError(Exception):
    """A peer that is missing or has failed; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Common settings of all engines of a run.

    home: PEERS_HOME, with models/ and workload.json. pythons: interpreter of each engine. model:
    name of a folder in models/. num_prompts: for W1 and W3. flags: flags of jaxserve.
    """

    peers_dir: Path
    home: Path
    pythons: Mapping[str, str]
    model: str
    num_prompts: int
    threads: int
    timeout_s: float
    flags: Sequence[str] = ()

    @property
    def folder(self) -> Path:
        """The model in Hugging Face's layout."""
        return self.home / "models" / self.model

    def python(self, name: str) -> str:
        """Return an engine's interpreter. Raises PeerError if it is not given."""
        path = self.pythons.get(name, "")
        if not Path(path).is_file():
            raise PeerError(f"no interpreter: give --python {name}=PATH")
        return path

    def environment(self, program: str) -> dict[str, str]:
        """Return what runners read from their environment; where to import from is ours alone."""
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return (dict(os.environ) if program == sys.executable else own) | {
            # A script's folder is no place to import from: this one has a kernels.py, as torch has.
            "PYTHONSAFEPATH": "1",
            "PEERS_HOME": str(self.home),
            "PEERS_DIR": str(self.peers_dir),
            "THREADS": str(self.threads),
            "NREQ": str(self.num_prompts),
            "LIMIT": str(int(self.timeout_s)),
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{self.threads - 1}",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_NO_USAGE_STATS": "1",
        }

    def results_of(self, command: Sequence[str]) -> list[Any]:
        """Run a program and return its results. Raises PeerError if it fails or has none."""
        try:
            run = subprocess.run(
                command,
                env=self.environment(command[0]),
                capture_output=True,
                text=True,
                timeout=self.timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise PeerError(f"took longer than {self.timeout_s:g} s") from error
        lines = [line for line in run.stdout.splitlines() if line.startswith(PREFIX)]
        if run.returncode != 0 or not lines:
            raise PeerError(f"exit status {run.returncode}: {last_line(run.stdout + run.stderr)}")
        return [json.loads(line.removeprefix(PREFIX)) for line in lines]

    def drive(self, command: Sequence[str], *, name: str, word: str, ready: str) -> list[Any]:
        """Start a server, run the peers' HTTP client against it (W3), and stop it."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        with serving([*command, str(port)], self.environment(command[0]), f"{url}{ready}") as pid:
            client = str(self.peers_dir / "http_client.py")
            arguments = [url, "x", name, self.model, word, "w3", "1", str(pid)]
            return self.results_of([sys.executable, client, *arguments, str(self.num_prompts)])


def last_line(text: str) -> str:
    """Return what a program said last, which is most often why it failed."""
    return (text.strip() or "nothing was said").splitlines()[-1][:300]


def free_port() -> int:
    """Return an unused port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(command: Sequence[str], environment: Mapping[str, str], ready: str) -> Iterator[int]:
    """Run a server, yield its process id once it answers, and end it with the block."""
    with (
        TemporaryFile("w+", encoding="utf-8") as log,  # no pipe, which would fill
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server,
    ):
        try:
            _wait(server, ready, log)
            yield server.pid
        finally:
            server.terminate()
            try:
                server.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait(server: subprocess.Popen[bytes], url: str, log: IO[str]) -> None:
    until_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until_s:
        if server.poll() is not None:
            log.seek(0)
            raise PeerError(f"its server ended: {last_line(log.read())}")
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.5)
    raise PeerError(f"its server was not ready in {START_TIMEOUT_S:g} s")
