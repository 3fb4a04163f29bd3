"""Typed reads of a Hugging Face `config.json`."""

import math
from collections.abc import Mapping

from jaxserve.errors import CheckpointError


class HfConfig:
    """Typed reads of a JSON object; every mistake raises CheckpointError with key and value."""

    def __init__(self, values: Mapping[str, object], *, where: str = "config.json") -> None:
        """Wrap `values`; `where` is their name in error messages."""
        self._values = values
        self._where = where

    def integer(self, key: str, *, default: int | None = None) -> int:
        """Return a positive integer; required if there is no default."""
        value = self.optional_integer(key, default=default)
        if value is None:
            raise CheckpointError(f"{self._where} lacks {key}")
        return value

    def optional_integer(self, key: str, *, default: int | None = None, low: int = 1) -> int | None:
        """Return an integer of at least `low`, or None; `default` replaces an absent key only."""
        value = self._values.get(key, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise self._refusal(key, f"integers from {low} up")
        return value

    def number(self, key: str, *, default: float | None = None) -> float:
        """Return a positive number as a float; required if there is no default."""
        value = self.optional_number(key)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self._where} lacks {key}")
        return value

    def optional_number(self, key: str, *, or_zero: bool = False) -> float | None:
        """Return a positive number, or zero if allowed; None if absent or null."""
        value = self._values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._refusal(key, "positive numbers")
        if not (0 < value < math.inf or (or_zero and value == 0)):
            raise self._refusal(key, "positive numbers")
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """Return a boolean; null counts as absent."""
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._refusal(key, "true or false")
        return value

    def only(self, key: str, *allowed: object) -> None:
        """Raise CheckpointError if a key is present with a value that is not allowed."""
        if key in self._values and self._values[key] not in allowed:
            raise self._refusal(key, " or ".join(_json_word(value) for value in allowed))

    def words(self, key: str) -> tuple[str, ...] | None:
        """Return a list of strings, or None if absent or null."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise self._refusal(key, "lists of strings")
        return tuple(value)

    def word(self, key: str) -> str | None:
        """Return a string, or None if absent or null."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self._refusal(key, "strings")
        return value

    def section(self, key: str) -> "HfConfig | None":
        """Return a nested object, or None if absent, null or empty."""
        value = self._values.get(key)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self._refusal(key, "objects")
        return HfConfig(value, where=f"{key} in {self._where}")

    def labels(self) -> tuple[str, ...]:
        """Return the label names of a classifier.

        Without names they are LABEL_0, LABEL_1 and so on, `num_labels` of them (default: two).
        """
        labels = self._values.get("id2label")
        if not labels:
            labels = {str(i): f"LABEL_{i}" for i in range(self.optional_integer("num_labels") or 2)}
        if not isinstance(labels, dict) or set(labels) != {str(i) for i in range(len(labels))}:
            raise self._refusal("id2label", "objects of names by number, from 0 up")
        return tuple(str(labels[str(i)]) for i in range(len(labels)))

    def uniform(self) -> dict[str, object]:
        """Return the values, with per-layer-type settings merged into one.

        Raises CheckpointError if the settings of layer types differ.
        """
        kinds = {key: value for key, value in self._values.items() if isinstance(value, dict)}
        flat = {key: value for key, value in self._values.items() if key not in kinds}
        if not kinds:
            return flat
        first, *others = kinds
        for kind in others:
            if kinds[kind] != kinds[first]:
                raise self._refusal(kind, f"one setting for all layers, and {first} has another")
        return {**kinds[first], **flat}

    def _refusal(self, key: str, limit: str) -> CheckpointError:
        return CheckpointError(
            f"{self._where} has {key} = {self._values[key]!r}; jaxserve supports {limit}"
        )


def _json_word(value: object) -> str:
    return "null" if value is None else repr(value)
