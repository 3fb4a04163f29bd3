"""Requests for JSON: the fields may be only named, or given with their values."""

import json
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from examples.tiny_model.facts import COUNTRIES
from examples.tiny_model.patterns import expand
from examples.tiny_model.words import (
    ANIMALS,
    CITIES,
    COLORS,
    FOODS,
    FRUITS,
    JOBS,
    LANGUAGES,
    NAMES,
    SMALL_NUMBERS,
    TOPICS,
    WORDS,
    invented_word,
    joined,
)  # fmt: skip

type Value = str | int | float | bool | list[str]

FIELDS: dict[str, Callable[[random.Random], Value]] = {
    "name": lambda rng: rng.choice(NAMES),
    "age": lambda rng: rng.randint(18, 80),
    "city": lambda rng: rng.choice(CITIES),
    "country": lambda rng: rng.choice(COUNTRIES),
    "email": lambda rng: f"{rng.choice(NAMES).lower()}@example.com",
    "color": lambda rng: rng.choice(COLORS),
    "price": lambda rng: rng.randint(1, 99) + rng.choice((0.25, 0.5, 0.75)),
    "id": lambda rng: rng.randint(1, 999),
    "active": lambda rng: rng.random() < 0.5,
    "job": lambda rng: rng.choice(JOBS),
    "animal": lambda rng: rng.choice(ANIMALS[:25]),
    "food": lambda rng: rng.choice(FOODS),
    "title": lambda rng: f"The {rng.choice(COLORS).title()} {rng.choice(ANIMALS[:20]).title()}",
    "year": lambda rng: rng.randint(1950, 2025),
    "score": lambda rng: rng.randint(0, 100),
    "quantity": lambda rng: rng.randint(1, 20),
    "tags": lambda rng: rng.sample(WORDS, 2),
    "hobby": lambda rng: rng.choice(TOPICS[:20]),
    "language": lambda rng: rng.choice(LANGUAGES),
}
LISTS: dict[str, tuple[str, ...]] = {
    "colors": COLORS, "animals": ANIMALS[:25], "names": NAMES, "cities": CITIES, "fruits": FRUITS,
    "foods": FOODS, "countries": COUNTRIES, "jobs": JOBS,
}  # fmt: skip

_QUESTIONS = (
    "(give|write|make|show|send|return) me( a| some|) JSON( object|) with {fields}",
    "(write|make|return|output|create|generate)( a| some|) JSON( object|) with {fields}",
    "(a |)JSON( object|) with {fields}",
    "{fields} (as|in) JSON",
    "(can|could) you (give|write) me( a|) JSON( object|) with {fields}",
    "(give|tell|send) me {fields} (as|in) JSON( format|)",
    "I (need|want)( a|) JSON( object|) with {fields}",
    "(answer|reply) (as|in|with) JSON( only|): {fields}",
    (
        "(give me|write) (a person|a user|a product|an item|an object|a record) "
        "(as JSON |in JSON |)with {fields}( as JSON|)"
    ),
)
_HELD_OUT_QUESTIONS = (
    "please produce a JSON object with {fields}",
    "I would like some JSON with {fields}",
    "would you write JSON with {fields}",
    "make me a JSON object that has {fields}",
)
_LIST_QUESTIONS = (
    "(give|write|make) me( a|) JSON (list|array) (of|with) {count} {things}",
    "(a |)JSON (list|array) (of|with) {count} {things}",
    "{count} {things} (as|in)( a|) JSON( list| array|)",
    "(list|name) {count} {things} (as|in) JSON",
)
_LIST_HELD_OUT = (
    "I would like a JSON array of {count} {things}",
    "please make a JSON list of {count} {things}",
)


@dataclass(frozen=True, slots=True)
class JsonTask:
    """A question for JSON and an answer that fits it.

    `given` holds the values that the question dictates (None where the model is free);
    `length` is the number of items asked for, if a list is asked for.
    """

    question: str
    answer: str
    keys: tuple[str, ...] = ()
    given: dict[str, Value] | None = None
    length: int | None = None

    def accepts(self, text: str) -> bool:
        """Whether `text` is valid JSON of the shape, and with the values, asked for."""
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            return False
        if self.length is not None:
            return isinstance(value, list) and len(value) == self.length
        if not isinstance(value, dict) or tuple(value) != self.keys:
            return False
        return self.given is None or value == self.given


def _spoken(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return " and ".join(value) if isinstance(value, list) else str(value)


def _list_task(rng: random.Random, *, held_out: bool) -> JsonTask:
    things = rng.choice(list(LISTS))
    count = rng.randint(2, 5)
    pattern = rng.choice(_LIST_HELD_OUT if held_out else _LIST_QUESTIONS)
    spoken = rng.choice((str(count), SMALL_NUMBERS[count]))
    question = expand(pattern, rng).format(count=spoken, things=things)
    return JsonTask(question, json.dumps(rng.sample(LISTS[things], count)), length=count)


def _draw_keys(rng: random.Random, *, held_out: bool) -> list[str]:
    """Draw distinct field names; one set of fields in ten is held out of training."""
    while True:
        keys = rng.sample(list(FIELDS), rng.choice((1, 2, 2, 2, 3, 3, 4)))
        if not held_out and rng.random() < 0.1:
            keys[-1] = rng.choice((rng.choice(WORDS), invented_word(rng)))
        kept_back = len(keys) > 1 and zlib.crc32(" ".join(sorted(keys)).encode()) % 10 == 0
        if kept_back == held_out and len(set(keys)) == len(keys):
            return keys


def json_task(rng: random.Random, *, held_out: bool) -> JsonTask:
    """Draw a request for a JSON object or list."""
    if rng.random() < 0.12:
        return _list_task(rng, held_out=held_out)
    keys = _draw_keys(rng, held_out=held_out)
    value = {key: FIELDS.get(key, FIELDS["food"])(rng) for key in keys}
    dictated = rng.random() < 0.4
    if dictated:
        link = rng.choice((" ", " ", " is ", ": ", " = "))
        spoken = [f"{key}{link}{_spoken(value[key])}" for key in keys]
    else:
        spoken = list(keys)
    listed = joined(spoken) if rng.random() < 0.75 else ", ".join(spoken)
    if not dictated:
        listed = expand("(||the (fields|keys) |(fields|keys) )", rng) + listed
    pattern = rng.choice(_HELD_OUT_QUESTIONS if held_out else _QUESTIONS)
    question = expand(pattern, rng).format(fields=listed)
    return JsonTask(question, json.dumps(value), tuple(keys), value if dictated else None)
