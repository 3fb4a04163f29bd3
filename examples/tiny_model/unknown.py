"""Questions that the tiny model cannot answer, and what it says to them."""

import random

from examples.tiny_model.facts import read_data
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
    SUBJECTS,
    TOPICS,
    WORDS,
)

UNKNOWN_ANSWER = (
    "I am only a tiny model and I do not know that. "
    "I know jaxserve, capitals, small sums, short stories, JSON and tools."
)

_WORDINGS = read_data("unknown")
_ADJECTIVES = (
    "blue", "big", "small", "old", "hot", "cold", "round", "loud", "slow", "bright", "heavy",
    "rare",
)  # fmt: skip
# Drawn in this order for every question: the corpus depends on it.
_SLOTS: dict[str, tuple[str, ...]] = {
    "adjective": _ADJECTIVES,
    "animal": ANIMALS,
    "city": CITIES,
    "city2": CITIES,
    "color": COLORS,
    "color2": COLORS,
    "food": FOODS,
    "fruit": FRUITS,
    "job": JOBS,
    "language": LANGUAGES,
    "name": NAMES,
    "name2": NAMES,
    "thing": SUBJECTS,
    "topic": TOPICS,
    "word": WORDS,
    "word2": WORDS,
    "word3": WORDS,
}


def unknown_question(rng: random.Random, *, held_out: bool) -> str:
    """Ask something that is not in the model's world."""
    pattern = expand(rng.choice(_WORDINGS["held_out" if held_out else "questions"]), rng)
    words = {slot: rng.choice(choices) for slot, choices in _SLOTS.items()}
    return pattern.format(**words)
