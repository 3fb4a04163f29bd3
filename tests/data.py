"""Paths of real checkpoints and tokenizers, which are not part of the project."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).resolve().parents[1] / "../shared/data"

needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="test data absent: ../shared/data beside the checkout"
)


def checkpoint(name: str) -> Path:
    """Return the folder of a real trained checkpoint; skip the test where it is absent."""
    folder = DATA / "checkpoints" / name
    if not folder.is_dir():
        pytest.skip(f"test data absent: ../shared/data/checkpoints/{name} beside the checkout")
    return folder


def quantized(name: str) -> Path:
    """Return the folder of a quantized checkpoint; skip the test where it is absent."""
    folder = DATA / "quantized" / name
    if not folder.is_dir():
        pytest.skip(f"test data absent: ../shared/data/quantized/{name} beside the checkout")
    return folder


def oracle(name: str) -> Any:
    """Return a module of numpy code that converts quantized checkpoints to float32 weights."""
    folder = str(DATA / "tools" / "quantized")
    if folder not in sys.path:
        sys.path.append(folder)
    return import_module(name)
