"""Generated tables are those of the code, and the commands in the pages for switchers parse."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

from jaxserve.cli import _parser

DOCS = Path(__file__).resolve().parents[1] / "docs"
COMMAND = re.compile(r"`(jaxserve [^`]+)`")


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """docs/generate.py, which is no package."""
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_the_generated_parts_of_a_document_are_those_of_the_code(
    path: Path, generate: ModuleType
) -> None:
    text = path.read_text("utf-8")
    assert generate.generated(text) == text, "run `make docs`"


def test_every_generated_part_stands_somewhere(generate: ModuleType) -> None:
    text = "".join(path.read_text("utf-8") for path in DOCS.glob("*.md"))
    assert {part[2] for part in generate.PART.finditer(text)} == set(generate.PARTS)


@pytest.mark.parametrize(
    "command", sorted(set(COMMAND.findall((DOCS / "from-vllm.md").read_text("utf-8"))))
)
def test_the_commands_for_who_switches_are_understood(command: str) -> None:
    _, name, *words = shlex.split(command)
    args = vars(_parser().parse_args([name, *(word for word in words if word != "...")]))
    # Each argument arrives under its own name.
    assert args["run"].__module__ == f"jaxserve.commands.{name}"
    assert args["model"] in words
    for flag, value in zip(words, [*words[1:], ""], strict=True):
        if flag.startswith("--"):
            arrived = args[flag[2:].replace("-", "_")]
            assert arrived is True if value.startswith("--") or not value else value in str(arrived)
