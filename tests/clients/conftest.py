"""One running server for all clients: the real program with the model inside the package.

Clients have an environment of their own (requirements-clients.lock), as their users' clients have:
neither side holds the other's dependencies back. JAXSERVE_PYTHON names the server's Python; without
it the server runs on the tests' own, and the clients that are not there are skipped.
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


@pytest.fixture(scope="session")
def server() -> Iterator[Address]:
    python = os.environ.get("JAXSERVE_PYTHON", sys.executable)
    command = [python, "-m", "jaxserve", "serve", "--port", "0", "--api-key", KEY]
    with subprocess.Popen(
        [*command, "--max-num-seqs", "8"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            said = (re.search(r"serves \S+ at (http://\S+)", line) for line in process.stdout)
            found = next(filter(None, said), None)
            assert found, f"the server did not start: status {process.wait(TIMEOUT_S)}"
            yield Address(found[1])
            process.terminate()
            assert process.wait(TIMEOUT_S) == 0
        finally:
            process.kill()
