"""A flag of vLLM that has no effect here, and how groups of them are declared."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxserve.errors import ConfigError

ON, OFF = "true", "false"


@dataclass(frozen=True, slots=True, kw_only=True)
class InertFlag:
    """A flag of vLLM that has no effect.

    reason: why it has none, or why its other values are refused. allowed: the values that may be
    given, as text; any if None. A switch takes no value, and has a `--no-` form.
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
        """Return the line that reports the flag, by the name it was given under.

        Raises ConfigError for a value that is refused.
        """
        if self.allowed is None:
            return f"{called} has no effect: {self.reason}"
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if text in self.allowed:
            return f"{called} has no effect: {text} is what jaxserve does anyway"
        if self.switch or not self.allowed:
            raise ConfigError(f"{called} is not supported: {self.reason}")
        raise ConfigError(
            f"{called} must be {' or '.join(self.allowed)}, got {text}: {self.reason}"
        )


def switches(reason: str, *names: str) -> Iterable[InertFlag]:
    """Return flags without a value."""
    return (InertFlag(**_called(name), reason=reason, switch=True) for name in names)


def values(reason: str, *names: str) -> Iterable[InertFlag]:
    """Return flags of one value, whatever it is."""
    return (InertFlag(**_called(name), reason=reason) for name in names)


def lists(reason: str, *names: str) -> Iterable[InertFlag]:
    """Return flags of several values, whatever they are."""
    return (InertFlag(**_called(name), reason=reason, many=True) for name in names)


def refused(reason: str, *names: str) -> Iterable[InertFlag]:
    """Return switches that may only be off."""
    return (
        InertFlag(**_called(name), reason=reason, switch=True, allowed=(OFF,)) for name in names
    )


def only(reason: str, allowed: Mapping[str, str]) -> Iterable[InertFlag]:
    """Return flags of one value, each with those that may be given, separated by spaces."""
    return (
        InertFlag(**_called(name), reason=reason, allowed=tuple(allowed.split()))
        for name, allowed in allowed.items()
    )


def unsupported(reason: str, *names: str) -> Iterable[InertFlag]:
    """Return flags of one value or several, of which none may be given."""
    return (InertFlag(**_called(name), reason=reason, many=True, allowed=()) for name in names)


def _called(spelling: str) -> dict[str, Any]:
    """Return the name and the short names that `name -x -y` has."""
    name, *aliases = spelling.split()
    return {"name": name, "aliases": tuple(aliases)}
