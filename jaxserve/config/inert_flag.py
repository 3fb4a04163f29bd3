"""Flags of vLLM that have no effect, and functions to declare groups of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxserve.errors import ConfigError

ON, OFF = "true", "false"


@dataclass(frozen=True, slots=True, kw_only=True)
class InertFlag:
    """A flag of vLLM that has no effect.

    reason: why it has no effect, or why other values are refused. allowed: accepted values, as
    text; None accepts any. switch: takes no value and has a `--no-` form. many: takes several
    values.
    """

    name: str
    reason: str
    allowed: tuple[str, ...] | None = None
    switch: bool = False
    many: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def keyword(self) -> str:
        """The name as a Python keyword."""
        return self.name.replace("-", "_")

    def note(self, value: object, *, called: str) -> str:
        """Return the log line that reports the flag. called: the name as the user gave it.

        Raises ConfigError for a refused value.
        """
        if self.allowed is None:
            return f"{called} has no effect: {self.reason}"
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if text in self.allowed:
            return f"{called} has no effect: {text} is the default behaviour of jaxserve"
        if self.switch or not self.allowed:
            raise ConfigError(f"{called} is not supported: {self.reason}")
        raise ConfigError(
            f"{called} must be {' or '.join(self.allowed)}, got {text}: {self.reason}"
        )


def switches(reason: str, *names: str) -> Iterable[InertFlag]:
    """Return switches: flags without a value."""
    return (InertFlag(**_called(name), reason=reason, switch=True) for name in names)


def values(reason: str, *names: str) -> Iterable[InertFlag]:
    """Return flags that take any single value."""
    return (InertFlag(**_called(name), reason=reason) for name in names)


def lists(reason: str, *names: str) -> Iterable[InertFlag]:
    """Return flags that take any list of values."""
    return (InertFlag(**_called(name), reason=reason, many=True) for name in names)


def refused(reason: str, *names: str) -> Iterable[InertFlag]:
    """Return switches that can only be turned off."""
    return (
        InertFlag(**_called(name), reason=reason, switch=True, allowed=(OFF,)) for name in names
    )


def only(reason: str, allowed: Mapping[str, str]) -> Iterable[InertFlag]:
    """Return flags of one value. allowed: accepted values of each flag, separated by spaces."""
    return (
        InertFlag(**_called(name), reason=reason, allowed=tuple(allowed.split()))
        for name, allowed in allowed.items()
    )


def unsupported(reason: str, *names: str) -> Iterable[InertFlag]:
    """Return flags for which every value is refused."""
    return (InertFlag(**_called(name), reason=reason, many=True, allowed=()) for name in names)


def _called(spelling: str) -> dict[str, Any]:
    """Split `name -x -y` into the name and its short forms."""
    name, *aliases = spelling.split()
    return {"name": name, "aliases": tuple(aliases)}
