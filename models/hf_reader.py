"""Typed reads of a Hugging Face `config.json`."""

import math
from collections.abc import Mapping

from jaxserve.errors import CheckpointError

_INFINITY = {"__float__": "Infinity"}


class HfConfig:
    """Typed reads of a JSON object; every mistake raises CheckpointError with key and value."""

    def __init__(
        self,
        values: Mapping[str, object],
        *,
        where: str = "config.json",
        defaults: Mapping[str, object] | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """Wrap `values`.

        where: their name in error messages. defaults: values of absent keys. names: keys that this
        file spells differently, by their usual names; methods take the usual ones.
        """
        self._values = {**(defaults or {}), **values}
        self._where = where
        self._names = names or {}

    def integer(self, key: str, *, default: int | None = None, low: int = 1) -> int:
        """Return an integer of at least `low`; required if there is no default."""
        value = self.optional_integer(key, default=default, low=low)
        if value is None:
            raise CheckpointError(f"{self._where} lacks {self._named(key)}")
        return value

    def optional_integer(self, key: str, *, default: int | None = None, low: int = 1) -> int | None:
        """Return an integer of at least `low`, or None; `default` replaces an absent key only."""
        value = self._get(key, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise self._refusal(key, f"integers from {low} up")
        return value

    def has(self, key: str) -> bool:
        """Return whether a key is present and not null."""
        return self._get(key) is not None

    def number(self, key: str, *, default: float | None = None) -> float:
        """Return a positive number as a float; required if there is no default."""
        value = self.optional_number(key)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self._where} lacks {self._named(key)}")
        return value

    def optional_number(self, key: str, *, or_zero: bool = False) -> float | None:
        """Return a positive number, or zero if allowed; None if absent or null."""
        value = self._get(key)
        if value is None:
            return None
        if _is_positive(value) or (or_zero and value == 0 and not isinstance(value, bool)):
            assert isinstance(value, int | float)
            return float(value)
        raise self._refusal(key, "positive numbers")

    def flag(self, key: str, *, default: bool) -> bool:
        """Return a boolean; null counts as absent."""
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._refusal(key, "true or false")
        return value

    def only(self, key: str, *allowed: object) -> None:
        """Raise CheckpointError if a key is present with a value that is not allowed."""
        if self._named(key) in self._values and self._get(key) not in allowed:
            raise self._refusal(key, " or ".join(_json_word(value) for value in allowed))

    def words(self, key: str) -> tuple[str, ...] | None:
        """Return a list of strings, or None if absent or null."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise self._refusal(key, "lists of strings")
        return tuple(value)

    def numbers(self, key: str) -> tuple[float, ...] | None:
        """Return a list of positive numbers as floats, or None if absent or null."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(_is_positive(each) for each in value):
            raise self._refusal(key, "lists of positive numbers")
        return tuple(map(float, value))

    def interval(self, key: str) -> tuple[float, float] | None:
        """Return a list of a lower and an upper limit, at least zero; None if absent or null.

        The upper one may be infinite, which transformers writes as `{"__float__": "Infinity"}`.
        """
        value = self._get(key)
        if value is None:
            return None
        if isinstance(value, list | tuple) and len(value) == 2:
            low, high = (math.inf if end == _INFINITY else end for end in value)
            are_numbers = all(
                isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high)
            )
            if are_numbers and 0 <= low < high:
                return float(low), float(high)
        raise self._refusal(key, "lists of two numbers, the lower one first")

    def integers(self, key: str, *, low: int = 0) -> tuple[int, ...] | None:
        """Return a list of integers of at least `low`, or None if absent or null."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(
            isinstance(each, int) and not isinstance(each, bool) and each >= low for each in value
        ):
            raise self._refusal(key, f"lists of integers from {low} up")
        return tuple(value)

    def word(self, key: str) -> str | None:
        """Return a string, or None if absent or null."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self._refusal(key, "strings")
        return value

    def section(self, key: str) -> "HfConfig | None":
        """Return a nested object, or None if absent, null or empty."""
        value = self._get(key)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self._refusal(key, "objects")
        return HfConfig(value, where=f"{self._named(key)} in {self._where}")

    def labels(self) -> tuple[str, ...]:
        """Return the label names of a classifier.

        Without names they are LABEL_0, LABEL_1 and so on, `num_labels` of them (default: two).
        """
        labels = self._get("id2label")
        if not labels:
            labels = {str(i): f"LABEL_{i}" for i in range(self.optional_integer("num_labels") or 2)}
        if not isinstance(labels, dict) or set(labels) != {str(i) for i in range(len(labels))}:
            raise self._refusal("id2label", "objects of names by number, from 0 up")
        return tuple(str(labels[str(i)]) for i in range(len(labels)))

    def for_layers(self, layer_type: str) -> dict[str, object]:
        """Return the values, with those for a type of layers in place of per-layer-type settings.

        If there are per-layer-type settings, but none for `layer_type`, it has no values.
        """
        kinds = {key: value for key, value in self._values.items() if isinstance(value, dict)}
        flat = {key: value for key, value in self._values.items() if key not in kinds}
        return {**kinds.get(layer_type, {}), **flat}

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

    def _named(self, key: str) -> str:
        """Return the file's own spelling of a key."""
        return self._names.get(key, key)

    def _get(self, key: str, default: object = None) -> object:
        return self._values.get(self._named(key), default)

    def _refusal(self, key: str, limit: str) -> CheckpointError:
        return CheckpointError(
            f"{self._where} has {self._named(key)} = {self._get(key)!r}; jaxserve supports {limit}"
        )


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _json_word(value: object) -> str:
    return "null" if value is None else repr(value)
