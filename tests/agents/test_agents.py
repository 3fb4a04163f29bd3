"""Coding agents, as npm installs them, each finish one turn with a server. See `make agent-tests`.

The model has random weights, so that its answers mean nothing: what is checked is that the agents
get one, and that none of their requests is refused.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
AGENTS = os.environ.get("JAXSERVE_AGENTS")
pytestmark = [
    pytest.mark.skipif(AGENTS is None, reason="only make agent-tests installs the agents"),
    pytest.mark.timeout(900),
]
ASK = "say hi"
# The largest prompt, Claude Code's, has about 35,000 tokens of the small model's tokenizer.
MAX_MODEL_LEN = 65_536
TURN_TIMEOUT_S = 600


@dataclass(frozen=True)
class Server:
    """A running server and the file that it logs to."""

    url: str
    log: Path

    def requests(self) -> list[dict[str, Any]]:
        """Return what the server has logged of requests."""
        lines = self.log.read_text("utf-8").splitlines()
        records = [json.loads(line) for line in lines if line.startswith("{")]
        return [record for record in records if record.get("event") == "request"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "jaxserve", "serve", "--port", "0", "--load-format", "dummy"]
    command += ["--hf-overrides", json.dumps({"max_position_embeddings": MAX_MODEL_LEN})]
    command += ["--served-model-name", "m", "--max-num-seqs", "2"]
    command += ["--logits-processors", "tests.agents.short_answers:ShortAnswers"]
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    assert process.stdout is not None
    said = (re.search(r"serves \S+ at (http://\S+)", line) for line in process.stdout)
    found = next(filter(None, said), None)
    try:
        assert found, f"the server did not start: {log.read_text('utf-8')[-2000:]}"
        yield Server(found[1], log)
    finally:
        process.terminate()
        process.communicate(timeout=60)


def run(program: str, *arguments: str, home: Path, **variables: str) -> str:
    """Run one turn of an agent in an empty repository, and return what it says."""
    assert AGENTS is not None
    work = home / "work"
    work.mkdir()
    subprocess.run(["git", "init", "--quiet"], cwd=work, check=True)
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        [(ROOT / AGENTS / "node_modules/.bin" / program).resolve(), *arguments],
        cwd=work,
        env={**kept, "HOME": str(home), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TURN_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def claude_code(url: str, home: Path) -> str:
    variables = {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": "none",
        "ANTHROPIC_MODEL": "m",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": "m",
    }
    return run("claude", "-p", ASK, home=home, **variables)


def codex(url: str, home: Path) -> str:
    config = f"""
model = "m"
model_provider = "jaxserve"
[model_providers.jaxserve]
name = "jaxserve"
base_url = "{url}/v1"
wire_api = "responses"
"""
    write(home / ".codex/config.toml", config)
    return run("codex", "exec", ASK, home=home)


def opencode(url: str, home: Path) -> str:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{url}/v1", "apiKey": "none"},
        "models": {"m": {}},
    }
    config = {"model": "jaxserve/m", "provider": {"jaxserve": provider}}
    write(home / ".config/opencode/opencode.json", json.dumps(config))
    return run("opencode", "run", ASK, home=home)


def qwen_code(url: str, home: Path) -> str:
    variables = {
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": "none",
        "OPENAI_MODEL": "m",
    }
    return run("qwen", "-p", ASK, home=home, **variables)


def continue_cli(url: str, home: Path) -> str:
    config = f"""
name: jaxserve
version: 1.0.0
schema: v1
models:
  - {{name: m, provider: openai, model: m, apiBase: "{url}/v1", apiKey: none, roles: [chat]}}
"""
    path = write(home / ".continue/config.yaml", config)
    return run("cn", "-p", ASK, "--config", str(path), home=home)


TURNS: Mapping[str, Any] = {
    turn.__name__: turn for turn in (claude_code, codex, opencode, qwen_code, continue_cli)
}


@pytest.mark.parametrize("name", TURNS)
def test_an_agent_finishes_a_turn(server: Server, name: str, tmp_path: Path) -> None:
    num_before = len(server.requests())
    said = TURNS[name](server.url, tmp_path)
    requests = server.requests()[num_before:]
    refused = [each for each in requests if each["status"] >= 400]
    assert refused == []
    assert any(each.get("completion_tokens") for each in requests)
    assert said.strip()
