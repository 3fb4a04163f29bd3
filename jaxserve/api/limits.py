"""Limits of numeric parameters: checked on requests, and published in the OpenAPI schema."""

from collections.abc import Collection
from dataclasses import KW_ONLY, dataclass
from typing import Any

from jaxserve.errors import InvalidRequestError

# Counts are int32 on the device.
MAX_COUNT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Limits:
    """Range of a number, from low to high; high=None is no limit.

    If `low` is an int, only integers are allowed. low_is_allowed: whether the range includes low.
    """

    low: float
    high: float | None = None
    _: KW_ONLY
    low_is_allowed: bool = True

    def check(self, name: str, value: object) -> None:
        """Raise InvalidRequestError, naming the parameter, unless the value is in the range."""
        if isinstance(value, bool) or not isinstance(value, self._kinds):
            kind = "an integer" if self._is_whole else "a number"
            raise InvalidRequestError(
                f"{name} must be {kind} {self._text}, got {show(value)}", param=name
            )
        if not self._is_within(value):
            shown = f"{value:g}" if isinstance(value, float) else show(value)
            raise InvalidRequestError(f"{name} must be {self._text}, got {shown}", param=name)

    def check_all(self, name: str, values: Collection[object]) -> None:
        """Raise InvalidRequestError, naming the first value that is not in the range."""
        kinds = {int} if self._is_whole else {int, float}
        if not set(map(type, values)) <= kinds or not all(map(self._is_within, values)):
            for value in values:
                self.check(name, value)

    def _is_within(self, value: Any) -> bool:
        # Only compare: an integer can be too large for a float. NaN is never in the range.
        is_above = value >= self.low if self.low_is_allowed else value > self.low
        return bool(is_above and (self.high is None or value <= self.high))

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of the range."""
        low = "minimum" if self.low_is_allowed else "exclusiveMinimum"
        schema = {"type": "integer" if self._is_whole else "number", low: self.low}
        return schema if self.high is None else schema | {"maximum": self.high}

    @property
    def _is_whole(self) -> bool:
        return isinstance(self.low, int)

    @property
    def _kinds(self) -> type[int] | tuple[type[int], type[float]]:
        return int if self._is_whole else (int, float)

    @property
    def _text(self) -> str:
        if self.high is None:
            return f"at least {self.low}"
        if self._is_whole:
            return f"in [{self.low}, {self.high}]"
        return f"in {'[' if self.low_is_allowed else '('}{self.low:g}, {self.high:g}]"


def show(value: object) -> str:
    """Return the repr of a value for an error message, truncated to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
