"""Paths of real checkpoints and tokenizers, which are not part of the project."""

from pathlib import Path

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
