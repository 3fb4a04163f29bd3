"""Modules that are not imported where they are not needed."""

import subprocess
import sys

import pytest

# Modules that take long to import. `--help` must not wait for them.
HEAVY = (
    "asyncio",
    "flax",
    "huggingface_hub",
    "jax",
    "jinja2",
    "msgspec",
    "numpy",
    "pallas_kernels",
    "prometheus_client",
    "pydantic",
    "starlette",
    "structlog",
    "tokenizers",
    "transformers",
    "uvicorn",
    "yaml",
)


@pytest.mark.parametrize(
    "statement",
    [
        "import jaxserve",
        "from jaxserve.cli import main; main(['--help'])",
        "from jaxserve.cli import main; main(['--version'])",
        "from jaxserve.cli import main; main(['serve', '--help'])",
        "from jaxserve.cli import main; main(['serve', '--no-such-flag'])",
        "from jaxserve.cli import main; main(['keys', '--help'])",
    ],
)
def test_what_answers_at_once_imports_nothing_heavy(statement: str) -> None:
    script = (
        "import sys\n"
        f"try: {statement}\n"
        "except SystemExit: pass\n"
        f"heavy = sorted({{*{HEAVY}}} & sys.modules.keys())\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr


def test_a_cpu_needs_neither_the_kernel_languages_nor_the_hub() -> None:
    script = (
        "import sys\n"
        "from jaxserve.config.engine import EngineOptions\n"
        "from jaxserve.planning.planner import plan_engine\n"
        "import jaxserve.build\n"
        "plan_engine(EngineOptions())\n"
        "heavy = {'jax.experimental.pallas', 'jax.experimental.mosaic.gpu', 'huggingface_hub'}\n"
        "heavy = sorted({*heavy, 'transformers'} & sys.modules.keys())\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
