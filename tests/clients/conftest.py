"""Two running servers for all clients, of the model inside the package: it generates, or embeds.

Clients have an environment of their own (requirements-clients.lock), as their users' clients have:
neither side holds the other's dependencies back. JAXSERVE_PYTHON names the servers' Python; without
it they run on the tests' own, and the clients that are not there are skipped.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.clients.world import KEY, Address

# No client may go and look for prices or send traces: there is no network.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["LANGSMITH_TRACING"] = "false"

TIMEOUT_S = 120
GENERATES = ("--max-num-seqs", "8")
EMBEDS = ("--runner", "pooling", "--max-model-len", "256")
STARTED = pytest.StashKey[dict[tuple[str, ...], subprocess.Popen[str]]]()


def pytest_configure(config: pytest.Config) -> None:
    """Start the servers before the clients are imported, which takes as long as they do."""
    python = os.environ.get("JAXSERVE_PYTHON", sys.executable)
    command = [python, "-m", "jaxserve", "serve", "--port", "0", "--api-key", KEY]
    config.stash[STARTED] = {
        options: subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for options in ([] if config.option.collectonly else [GENERATES, EMBEDS])
    }


def pytest_unconfigure(config: pytest.Config) -> None:
    for process in config.stash[STARTED].values():
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Iterator[Address]:
    """The server that generates."""
    yield from running(pytestconfig.stash[STARTED][GENERATES])


@pytest.fixture(scope="session")
def embedder(pytestconfig: pytest.Config) -> Iterator[Address]:
    """The server that embeds."""
    yield from running(pytestconfig.stash[STARTED][EMBEDS])


def running(process: subprocess.Popen[str]) -> Iterator[Address]:
    """Wait until a server tells its address; in the end, see that it ends as it should."""
    assert process.stdout is not None
    said = (re.search(r"serves \S+ at (http://\S+)", line) for line in process.stdout)
    found = next(filter(None, said), None)
    assert found, f"the server did not start: status {process.wait(TIMEOUT_S)}"
    yield Address(found[1])
    process.terminate()
    assert process.wait(TIMEOUT_S) == 0
