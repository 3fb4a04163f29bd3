"""Structural tags: free text in which tagged parts follow schemas, as tool calls do."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from jaxserve.structured_outputs import refusal

MAX_TAGS = 512


class Tag(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part that begins with `begin` and ends with `end`; `schema` is what stands between."""

    begin: str
    end: str
    schema: dict[str, Any] | bool = True


class StructuralTag(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Free text with tags: where one of `triggers` is written, a tag that begins so must follow.

    The fields of vLLM's `structural_tag`, and of its newer form the two that bind: at_least_one
    tag, without any text before it; stop_after_first, after which nothing follows.
    """

    structures: list[Tag]
    triggers: list[str]
    type: str = "structural_tag"
    at_least_one: bool = False
    stop_after_first: bool = False


def tags_grammar(text: str, *, special_tokens: Sequence[str]) -> str:
    """Return the Lark grammar of a structural tag; raises InvalidRequestError."""
    try:
        tags = msgspec.json.decode(text, type=StructuralTag)
    except (ValueError, RecursionError) as error:
        raise refusal(
            "structural_tag",
            "must be the JSON of an object with triggers, and structures of begin, schema and end",
        ) from error
    if not 0 < len(tags.structures) <= MAX_TAGS:
        raise refusal("structural_tag", f"must have 1 to {MAX_TAGS} structures")
    rules = [
        _rule(f"tag_{index}", tag, _trigger_of(tag, tags.triggers), special_tokens, tags)
        for index, tag in enumerate(tags.structures)
    ]
    any_tag = "(" + " | ".join(f"tag_{index}" for index in range(len(rules))) + ")"
    any_tag += "" if tags.stop_after_first else "+" if tags.at_least_one else "*"
    tail = "" if tags.at_least_one else " TEXT"
    if tags.stop_after_first and not tags.at_least_one:
        any_tag, tail = f"{any_tag} | TEXT", ""
    return "\n".join(
        ["%llguidance {}", f"start: {any_tag}{tail}", "TEXT: /(.|\\n)*/", "GAP: /\\s{0,8}/", *rules]
    )


def _rule(
    name: str, tag: Tag, trigger: str, special_tokens: Sequence[str], tags: StructuralTag
) -> str:
    """Return the rule of one tag and what comes before it."""
    before = "GAP" if tags.at_least_one else "TEXT"
    end = literals(tag.end, special_tokens)
    body = f"%json {json.dumps(tag.schema if tag.schema is not True else {})} {end}"
    if trigger in special_tokens or tags.at_least_one:
        return f"{name}: {before} {literals(tag.begin, special_tokens)} {body}"
    # The text before a trigger ends at the first there is.
    rest = literals(tag.begin[len(trigger) :], special_tokens)
    return f"{name}_head[lazy]: {before} {json.dumps(trigger)}\n{name}: {name}_head {rest} {body}"


def literals(text: str, special_tokens: Sequence[str]) -> str:
    """Return a text as literals, and special tokens in it by their names."""
    for token in special_tokens:
        if token in text and token.startswith("<") and token.endswith(">"):
            before, _, after = text.partition(token)
            parts = (literals(before, special_tokens), token, literals(after, special_tokens))
            return " ".join(part for part in parts if part)
    return json.dumps(text) if text else ""


def _trigger_of(tag: Tag, triggers: Sequence[str]) -> str:
    for trigger in triggers:
        if trigger and tag.begin.startswith(trigger):
            return trigger
    raise refusal("structural_tag", "must have, for each structure, a trigger that it begins with")


def structural_tag(
    structures: Sequence[Mapping[str, Any]], triggers: Sequence[str], **options: bool
) -> str:
    """Return a structural tag as text."""
    fields = {"type": "structural_tag", "structures": structures, "triggers": triggers, **options}
    return json.dumps(fields)
