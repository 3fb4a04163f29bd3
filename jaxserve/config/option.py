"""Fields of settings classes that declare their flag, help text and valid values.

    @dataclass(frozen=True, kw_only=True)
    class Settings:
        page_size: int | None = option(None, "tokens per page", flag="block-size", at_least=1)

        def __post_init__(self) -> None:
            check_options(self)

This line defines the flag `--block-size`, the keyword `block_size` of `LLM`, the key `block-size`
of a config file, the help text, the validation, and the row in docs/flags.md.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from jaxserve.config.values import json_object, number
from jaxserve.errors import ConfigError

_KEY = "option"
_READERS: Mapping[type, Callable[[str], object]] = {
    int: number,
    float: float,
    Mapping: json_object,
}
_WORDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    tuple: "a sequence of strings",
    Mapping: "a JSON object",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A flag of the command line.

    name: the name without leading dashes. field: field of the settings class that it sets. parse:
    converts its text. many: takes one or more values; repeating the flag adds values. switch:
    takes no value and has a `--no-` form.
    """

    name: str
    field: str
    help: str
    parse: Callable[[str], object] = str
    choices: tuple[str, ...] | None = None
    many: bool = False
    switch: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def keyword(self) -> str:
        """The name as a Python keyword."""
        return self.name.replace("-", "_")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Option:
    """Metadata of a field; see `option`."""

    help: str
    flag: str | None
    parse: Callable[[str], object] | None
    choices: tuple[str, ...] | None
    aliases: tuple[str, ...]
    many: bool | None
    at_least: float | None
    above: float | None
    at_most: float | None

    def allows(self, value: Any) -> bool:
        """Return whether a value is within the limits."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
        )

    @property
    def limits(self) -> str:
        """The limits as text that follows "an integer" in a message."""
        if self.at_most is not None:
            low = f"({self.above}" if self.above is not None else f"[{self.at_least}"
            return f" in {low}, {self.at_most}]"
        if self.above is not None:
            return f" above {self.above}"
        return "" if self.at_least is None else f" of at least {self.at_least}"


def option(
    default: object,
    help: str,  # noqa: A002 (as argparse calls it)
    *,
    flag: str | None = None,
    parse: Callable[[str], object] | None = None,
    choices: Iterable[str] | None = None,
    aliases: tuple[str, ...] = (),
    many: bool | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    is_secret: bool = False,
) -> Any:
    """Declare a field of a settings class that a flag sets.

    Args:
        default: Default value. A dict is copied for each instance.
        help: Help text without a final full stop, for `--help` and docs/flags.md.
        flag: Name of the flag if it differs from the field's. "" declares no flag.
        parse: Converts the flag's text. By default it depends on the field's type: a bool is a
            switch, a tuple takes several values, a mapping is a JSON object.
        choices: Valid values.
        aliases: Other spellings of the flag, with dashes.
        many: Whether the flag takes several values (default: if the field is a tuple).
        at_least: Inclusive lower limit.
        above: Exclusive lower limit.
        at_most: Inclusive upper limit.
        is_secret: Omit the value from the repr of the settings.
    """
    declared = _Option(
        help=help,
        flag=flag,
        parse=parse,
        choices=None if choices is None else tuple(choices),
        aliases=aliases,
        many=many,
        at_least=at_least,
        above=above,
        at_most=at_most,
    )
    kept: dict[str, Any] = {"metadata": {_KEY: declared}, "repr": not is_secret}
    if isinstance(default, dict):
        return field(default_factory=default.copy, **kept)
    return field(default=default, **kept)


@cache
def flags_of(settings: type[Any]) -> tuple[Flag, ...]:
    """Return the flags of a settings class in field order."""
    kinds = get_type_hints(settings)
    return tuple(
        _flag(each, declared, _kind(kinds[each.name]))
        for each in fields(settings)
        if (declared := each.metadata.get(_KEY)) is not None and declared.flag != ""
    )


def check_options(settings: Any) -> None:
    """Raise ConfigError for the first option with a value of a wrong type or outside its limits.

    The message has the field, the value and the limit.
    """
    kinds = get_type_hints(type(settings))
    for each in fields(settings):
        declared = each.metadata.get(_KEY)
        if declared is not None:
            _check(each.name, getattr(settings, each.name), declared, kinds[each.name])


def default_of(declared: "Field[Any]") -> object:
    """Return the default of a field, or the result of its default_factory."""
    if declared.default_factory is not MISSING:
        return declared.default_factory()
    return declared.default


def _flag(of: "Field[Any]", declared: _Option, kind: type) -> Flag:
    return Flag(
        name=declared.flag or of.name.replace("_", "-"),
        field=of.name,
        help=declared.help,
        parse=declared.parse or _READERS.get(kind, str),
        choices=declared.choices,
        many=kind is tuple if declared.many is None else declared.many,
        switch=kind is bool,
        aliases=declared.aliases,
    )


def _kind(hint: Any) -> type:
    """Return the class of a field's values, ignoring None."""
    kinds = [each for each in get_args(hint) if each is not NoneType]
    hint = kinds[0] if get_origin(hint) in {UnionType, Union} else hint
    kind: type = get_origin(hint) or hint
    return Mapping if issubclass(kind, Mapping) else kind


def _check(name: str, value: object, declared: _Option, hint: Any) -> None:
    if value is None and NoneType in get_args(hint):
        return
    kind = _kind(hint)
    if declared.choices is not None:
        if value not in declared.choices:
            raise ConfigError(f"{name} must be one of {', '.join(declared.choices)}, got {value!r}")
    elif not _is_a(value, kind) or not declared.allows(value):
        raise ConfigError(f"{name} must be {_WORDS[kind]}{declared.limits}, got {value!r}")


def _is_a(value: object, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
