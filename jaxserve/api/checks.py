"""Checks of settings; each raises ConfigError with the option, the value and the limit."""

from math import inf

from jaxserve.errors import ConfigError


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless an option has one of its choices."""
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_slowdown(value: float) -> None:
    """Raise ConfigError unless a step with prompts may be longer than one of decodes alone."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1.0 < value <= inf:
        raise ConfigError(f"max_decode_slowdown must be a number above 1, got {value!r}")


def check_not_negative(name: str, value: int) -> None:
    """Raise ConfigError unless an option is a whole number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"{name} must be an integer of at least 0, got {value!r}")


def check_positive(name: str, value: int) -> None:
    """Raise ConfigError unless an option is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be an integer of at least 1, got {value!r}")
