"""Short stories from a small grammar: a hero, a place, a problem and how it ends well."""

import random
import re

from examples.tiny_model.facts import read_data
from examples.tiny_model.patterns import expand
from examples.tiny_model.words import (
    PEOPLE,
    PET_NAMES,
    PLACES,
    SUBJECTS,
    TREASURES,
    with_article,
)

_GRAMMAR: dict[str, tuple[str, ...]] = read_data("stories")
_VOCABULARY = frozenset(
    re.findall(
        r"[a-z]+",
        " ".join(
            [
                *(_GRAMMAR["openings"] + _GRAMMAR["plots"] + _GRAMMAR["endings"]),
                *(_GRAMMAR["adjectives"] + _GRAMMAR["hobbies"] + _GRAMMAR["helpers"]),
                *(PLACES + TREASURES + SUBJECTS + PET_NAMES),
                "a an was",
            ]
        ).lower(),
    )
)


def story(hero: str, rng: random.Random) -> str:
    """Write a story of four to eight sentences about `hero`, a noun without article."""
    name = rng.choice(PET_NAMES)
    adjective = rng.choice(_GRAMMAR["adjectives"])
    pattern = " ".join(rng.choice(_GRAMMAR[part]) for part in ("openings", "plots", "endings"))
    # A fox that meets a fox would leave open which of the two is meant.
    helper = rng.choice([animal for animal in _GRAMMAR["helpers"] if animal != hero])
    words = {
        "hero": hero,
        "name": name,
        "a_adjective": with_article(adjective),
        "Hero_named": f"{name} was {with_article(hero)}. {name}",
        "place": rng.choice(PLACES),
        "hobby": rng.choice(_GRAMMAR["hobbies"]),
        "treasure": rng.choice(TREASURES),
        "helper": helper,
        "a_helper": with_article(helper),
        "A_helper": with_article(helper).capitalize(),
    }
    return expand(pattern, rng).format(**words)


def ask_for_story(rng: random.Random, *, held_out: bool) -> tuple[str, str, str]:
    """Return a question, its story and the hero that the story must be about."""
    if not held_out and rng.random() < 0.15:
        hero = rng.choice(SUBJECTS)
        return expand(rng.choice(_GRAMMAR["any_story"]), rng), story(hero, rng), hero
    hero = rng.choice(SUBJECTS)
    question = expand(rng.choice(_GRAMMAR["held_out" if held_out else "questions"]), rng)
    if hero in PEOPLE and rng.random() < 0.1:
        hero = f"{rng.choice(_GRAMMAR['adjectives'])} {hero}"
    return question.format(a_hero=with_article(hero)), story(hero, rng), hero


def is_story(text: str, hero: str) -> bool:
    """Whether `text` is a whole story about `hero`: three sentences or more, of our own words."""
    sentences = [part for part in re.split(r"[.!?]\"?(?: |$)", text) if part]
    unknown = set(re.findall(r"[a-z]+", text.lower())) - _VOCABULARY
    whole = text.endswith((".", "!")) and len(sentences) >= 3
    return whole and hero in text and not unknown
