"""A package's re-exports match its `__all__`, and every name in it can be imported."""

import ast
import importlib
from pathlib import Path

import pytest


def reexports(path: Path) -> set[str]:
    """Return the names imported as `from module import Name as Name`."""
    return {
        alias.name
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }


@pytest.mark.parametrize("package", ["jaxserve", "pallas_kernels"])
def test_all_lists_the_reexported_names(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__file__ is not None
    public = {name for name in module.__all__ if not name.startswith("__")}
    assert public == reexports(Path(module.__file__))
    assert len(module.__all__) == len(set(module.__all__))


@pytest.mark.parametrize("package", ["jaxserve", "pallas_kernels"])
def test_every_public_name_can_be_had(package: str) -> None:
    module = importlib.import_module(package)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
