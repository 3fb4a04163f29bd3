"""Knowledge of the tiny model, read from `data/`: small talk, jaxserve and capitals."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DATA = Path(__file__).with_name("data")


@dataclass(frozen=True, slots=True)
class Topic:
    """One thing people ask, the wordings of it, and what to say; all are patterns but the answers.

    held_out: wordings that are never trained on.
    """

    name: str
    questions: tuple[str, ...]
    held_out: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Capitals:
    """The capital of each country, and how people ask for one, or for the country of a city."""

    capitals: dict[str, str]
    questions: tuple[str, ...]
    held_out: tuple[str, ...]
    city_questions: tuple[str, ...]
    city_held_out: tuple[str, ...]


def read_data(name: str) -> dict[str, Any]:
    """Read a file of `data/`. Its lists become tuples."""
    parsed: dict[str, Any] = _frozen(tomllib.loads((_DATA / f"{name}.toml").read_text()))
    return parsed


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return value


SMALL_TALK = tuple(Topic(**topic) for topic in read_data("small_talk")["topics"])
JAXSERVE = tuple(Topic(**topic) for topic in read_data("jaxserve")["topics"])
CAPITALS = Capitals(**read_data("capitals"))
# The names that are said without "the", as in a field of JSON.
COUNTRIES = tuple(country for country in CAPITALS.capitals if not country.startswith("the "))
