"""Published models by name, as their config.json gives their shapes; without weights.

What can be planned and compiled with nothing downloaded; tests and benchmarks read them too.
"""

from pathlib import Path

_FOLDER = Path(__file__).parents[1] / "assets" / "published"


def published() -> dict[str, Path]:
    """Return the configuration file of each published model, by the model's name here."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.json"))}
