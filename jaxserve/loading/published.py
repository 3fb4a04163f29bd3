"""Configurations of published models, included without weights.

They can be planned and compiled without a download, and are used by tests and benchmarks.
"""

from pathlib import Path

_FOLDER = Path(__file__).parents[1] / "assets" / "published"


def published() -> dict[str, Path]:
    """Return the configuration files of the published models, by short name."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.json"))}
