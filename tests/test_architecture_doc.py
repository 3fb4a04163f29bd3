"""docs/architecture.md names files and symbols that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "architecture.md").read_text("utf-8")
CODE = "".join(
    path.read_text("utf-8")
    for folder in ("jaxserve", "pallas_kernels")
    for path in (ROOT / folder).rglob("*.py")
)
QUOTED = set(re.findall(r"`([^`\n]+)`", TEXT))
PATHS = sorted(each for each in QUOTED if re.fullmatch(r"[\w/]+(\.py|/)", each))
CLASSES = sorted(each for each in QUOTED if re.match(r"[A-Z][a-z]\w*(\.\w+)?$", each))


@pytest.mark.parametrize("path", PATHS)
def test_the_path_exists(path: str) -> None:
    assert any((folder / path).exists() for folder in (ROOT, ROOT / "jaxserve"))


@pytest.mark.parametrize("name", CLASSES)
def test_the_class_or_protocol_exists_with_its_member(name: str) -> None:
    first, _, member = name.partition(".")
    body = re.search(rf"^class {first}\b.*?(?=^class |^def |\Z)", CODE, re.MULTILINE | re.DOTALL)
    assert body, f"no class {first}"
    if member:
        assert re.search(rf"^    (def |async def )?{member}\b", body[0], re.MULTILINE)
