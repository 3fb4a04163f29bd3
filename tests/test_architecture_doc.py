"""Documents name files that exist, and docs/architecture.md classes and members that do."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT, ROOT / "jaxserve")
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
TEXT = (ROOT / "docs" / "architecture.md").read_text("utf-8")
CLASSES = defaultdict[str, list[ast.ClassDef]](list)
for folder in ("jaxserve", "models", "pallas_kernels"):
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef):
                CLASSES[node.name].append(node)
QUOTED = set(re.findall(r"`([^`\n]+)`", TEXT))
PATHS = sorted(each for each in QUOTED if re.fullmatch(r"[\w/]+(\.py|/)", each))
NAMES = sorted(each for each in QUOTED if re.match(r"[A-Z][a-z]\w*(\.\w+)?$", each))


def members(name: str) -> set[str]:
    """Return what the classes of a name and their bases define: methods and fields."""
    found: set[str] = set()
    for each in CLASSES.get(name, []):
        for node in each.body:
            match node:
                case ast.FunctionDef(name=defined):
                    found.add(defined)
                case ast.AnnAssign(target=ast.Name(id=defined)):
                    found.add(defined)
                case ast.Assign(targets=[ast.Name(id=defined)]):
                    found.add(defined)
        for base in each.bases:
            found |= members(ast.unparse(base).partition("[")[0])
    return found


@pytest.mark.parametrize("path", PATHS)
def test_the_path_exists(path: str) -> None:
    assert any((folder / path).exists() for folder in FOLDERS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.stem)
def test_every_file_that_a_document_names_exists(document: Path) -> None:
    named = re.findall(r"`((?:\w+/)+\w+\.py)`", document.read_text("utf-8"))
    missing = [path for path in named if not any((folder / path).exists() for folder in FOLDERS)]
    assert missing == []


@pytest.mark.parametrize("name", NAMES)
def test_the_class_exists_with_its_member(name: str) -> None:
    first, _, member = name.partition(".")
    assert first in CLASSES
    assert not member or member in members(first)
