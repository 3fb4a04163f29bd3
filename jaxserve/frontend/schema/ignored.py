"""Find the fields of a body that have no effect, to report them to the client."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Any, TypeAliasType, get_args

from pydantic import AliasChoices

from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.schema.body import Body, Dropped
from jaxserve.frontend.schema.fields import Place

# Maximum number of names recorded per request; further ones are dropped.
MAX_NAMES = 64
MAX_NAME_CHARS = 64
MAX_HEADER_NAMES = 32
MAX_HEADER_CHARS = 1024
# Maximum number of fields examined per body: thousands of messages may repeat the same hint.
MAX_PLACES = 10_000
# Other characters could end the header, or a name in it.
UNSAFE = re.compile(r"[^\x21-\x2b\x2d-\x7e]")


class IgnoredFields:
    """Names of the fields of one request that were accepted without effect.

    A name is the path of a field without indices, such as `messages[].cache_control`. is_strict:
    whether unknown fields are refused. names: maps each name to whether it is a known hint.
    """

    def __init__(self, *, is_strict: bool = False) -> None:
        self.is_strict = is_strict
        self.names: dict[str, bool] = {}

    def add(self, place: Place, *, is_hint: bool = False) -> None:
        """Record a field. Raises InvalidRequestError for an unknown field if `is_strict`."""
        if self.is_strict and not is_hint:
            name = show_place(place)
            raise InvalidRequestError(f"there is no field {name}", param=name, code="unknown_field")
        if len(self.names) < MAX_NAMES:
            path = show_place(tuple("[]" if isinstance(step, int) else step for step in place))
            self.names.setdefault(UNSAFE.sub("?", path) or "?", is_hint)

    def add_roles(self, roles: Mapping[str, int]) -> None:
        """Record roles that the chat template ignores, each with the index of a message.

        Raises InvalidRequestError if `is_strict`.
        """
        for role, index in roles.items():
            place: Place = ("messages", index, "role")
            if self.is_strict:
                param = show_place(place)
                raise InvalidRequestError(
                    f"{param} must be a role that the model's chat template reads, got {role!r}",
                    param=param,
                )
            self.add(place, is_hint=True)

    def add_all(self, fields: Mapping[str, Any], model: type[Body], body: Body | None) -> None:
        """Record the fields of a body that `model` does not read; see `unread_places`.

        Raises InvalidRequestError as `add` does.
        """
        for place, is_hint in islice(unread_places(fields, model, body), MAX_PLACES):
            self.add(place, is_hint=is_hint)

    @property
    def header(self) -> str:
        """The names as the value of a header; empty if there are none."""
        shown = ", ".join([*self.names][:MAX_HEADER_NAMES])
        is_cut = len(self.names) > MAX_HEADER_NAMES
        if len(shown) > MAX_HEADER_CHARS:
            shown, is_cut = shown[:MAX_HEADER_CHARS].rpartition(", ")[0], True
        return f"{shown}, ..." if is_cut else shown


def unread_places(
    fields: Mapping[str, Any], model: type[Body], body: Body | None, place: Place = ()
) -> Iterator[tuple[Place, bool]]:
    """Yield the places of unread fields, each with whether it is a known hint.

    body: the validated model; None if validation failed, and then only the top-level fields are
    examined. A null field counts as absent.
    """
    if isinstance(body, Dropped):
        yield (*place, body.type), True
        return
    if body is not None:
        yield from (((*place, *part), True) for part in body.unread_parts())
    read, unread = _attributes(model), model.unread
    for name, value in fields.items():
        if value is None or name in unread.refused:
            continue
        attribute = read.get(name)
        if attribute is None:
            yield (*place, name), name in unread.ignored
        elif unread.is_idle(name, value):
            yield (*place, name), True
        elif body is not None and attribute.holds_bodies:
            yield from _within(value, getattr(body, attribute.name), (*place, name))


def _within(value: object, parsed: object, place: Place) -> Iterator[tuple[Place, bool]]:
    """Yield the unread places within the value of a field, given the parsed value."""
    if isinstance(parsed, Body):
        if isinstance(value, dict):
            yield from unread_places(value, type(parsed), parsed, place)
    elif isinstance(value, list) and isinstance(parsed, list) and len(value) == len(parsed):
        for index, (entry, made) in enumerate(zip(value, parsed, strict=True)):
            yield from _within(entry, made, (*place, index))


class _Attribute:
    """Attribute of a model that a JSON field is parsed into.

    holds_bodies: whether its value can contain bodies, as lists of numbers and free objects cannot.
    """

    def __init__(self, name: str, *, holds_bodies: bool) -> None:
        self.name = name
        self.holds_bodies = holds_bodies


@cache
def _attributes(model: type[Body]) -> Mapping[str, _Attribute]:
    """Return the attributes of a model by their names in JSON."""
    found: dict[str, _Attribute] = {}
    for name, field in model.model_fields.items():
        alias = field.validation_alias or name
        names = alias.choices if isinstance(alias, AliasChoices) else [alias]
        attribute = _Attribute(name, holds_bodies=_holds_bodies(field.annotation))
        found |= {str(each): attribute for each in names}
    return found


def _holds_bodies(kind: object) -> bool:
    """Whether values of a type can contain bodies."""
    if isinstance(kind, TypeAliasType):
        return _holds_bodies(kind.__value__)
    if isinstance(kind, type) and issubclass(kind, Body):
        return True
    return any(map(_holds_bodies, get_args(kind)))


def show_place(place: Sequence[int | str]) -> str:
    """Return a place in the form `messages[0].content`, truncated to MAX_NAME_CHARS."""
    text = "".join(
        f"[{step}]" if isinstance(step, int) else step if step == "[]" else f".{step}"
        for step in place
    )
    return text.removeprefix(".")[:MAX_NAME_CHARS]
