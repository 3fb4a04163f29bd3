"""Translate structural tags, which mix free text with constrained parts, into Lark."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
from llguidance.gbnf_to_lark import any_to_lark

from jaxserve.api.structured_outputs import MAX_DEPTH, is_deeper, refusal
from jaxserve.errors import InvalidRequestError
from jaxserve.grammar import formats
from jaxserve.grammar.formats import (
    AnyText,
    ConstString,
    Format,
    LegacyStructuralTag,
    StructuralTag,
    Tag,
    Terminal,
    TriggeredTags,
)
from jaxserve.grammar.parameters import ANY, parameters, regex_of, slashed, without
from jaxserve.grammar.schemas import DUMPED, followed

MAX_TAGS = 512
MAX_REPEATS = 1024
# Nesting of formats and of the schemas in them.
MAX_TAG_DEPTH = 2 * MAX_DEPTH
# Numbers stay Decimals: as floats they would lose digits before the check for exactness.
read = msgspec.json.Decoder(float_hook=Decimal).decode

# Ids of the added tokens by text; see Vocabulary.markup.
type Markup = Mapping[str, int]


def tags_grammar(
    text: str,
    *,
    markup: Markup,
    whitespace: Mapping[str, Any],
    is_closed: bool = False,
    answer: str | None = None,
) -> str:
    """Return the Lark grammar of a structural tag. Raises InvalidRequestError.

    whitespace, is_closed: options of its JSON; see schemas.py. answer: the Lark expression of the
    `Answer` format; None if that format is not allowed.
    """
    writer = _Writer(markup, answer, whitespace=whitespace, is_closed=is_closed)
    try:
        start = writer.written(_read(text).format)
    except RecursionError as error:
        raise _too_deep() from error
    return "\n".join(["%llguidance {}", f"start: {start}", *writer.rules])


def literals(text: str, markup: Markup) -> str:
    """Return a text as Lark literals, with its special tokens written by id."""
    return " ".join(piece.lark for piece in _pieces(text, markup)) or '""'


def _read(text: str) -> StructuralTag | LegacyStructuralTag:
    try:
        fields = read(text)
    except ValueError as error:
        raise refusal("structural_tag", "must be JSON") from error
    if is_deeper(fields, MAX_TAG_DEPTH):
        raise _too_deep()
    try:
        if isinstance(fields, dict) and "format" in fields:
            return msgspec.convert(fields, StructuralTag)
        return msgspec.convert(fields, LegacyStructuralTag)
    except msgspec.ValidationError as error:
        complaint = f"must have a format, or triggers and structures: {error}"
        raise refusal("structural_tag", complaint) from error


def _too_deep() -> InvalidRequestError:
    return refusal("structural_tag", f"must have at most {MAX_TAG_DEPTH} levels")


class _Piece(NamedTuple):
    """A part of a text, in Lark: a string, or a special token."""

    lark: str
    is_special: bool


def _pieces(text: str, markup: Markup) -> list[_Piece]:
    for token, token_id in markup.items():
        if token in text:
            before, _, after = text.partition(token)
            special = _Piece(f"<[{token_id}]>", is_special=True)
            return [*_pieces(before, markup), special, *_pieces(after, markup)]
    return [_Piece(json.dumps(text), is_special=False)] if text else []


class _Writer:
    """Writes formats as Lark expressions, and collects their rules.

    Free text ends where the next format begins. So each format is written together with `then`,
    the texts of which one must follow it; empty at the end of the answer.
    """

    def __init__(
        self,
        markup: Markup,
        answer: str | None,
        *,
        whitespace: Mapping[str, Any],
        is_closed: bool,
    ) -> None:
        self._markup = markup
        self._answer = answer
        self._whitespace = whitespace
        self._is_closed = is_closed
        self.rules: list[str] = []
        self._names: dict[str, str] = {}

    def written(self, form: Format, then: Sequence[str] = ()) -> str:
        """Return the expression of a format followed by one of `then`."""
        match form:
            case AnyText():
                return self._text(self._terminal(form), then)
            case Terminal(terminal=terminal):
                return self._text(terminal, then)
            case TriggeredTags():
                return self._triggered(form, then)
            case formats.Sequence(elements=elements):
                return self._sequence(elements, then)
            case formats.Or(elements=[_, *_] as elements):
                return _either(self.written(element, then) for element in elements)
            case formats.JsonSchema(style=style) if style != "json":
                return self.written(parameters(form.json_schema, style), then)
            case Tag(ends=()):
                return f"{self._literals(form.begin)} {self.written(form.content, then)}"
        return f"{self._bounded(form)} {self._either(then)}"

    def _bounded(self, form: Format) -> str:
        """Return the expression of a format that determines its own end."""
        match form:
            case ConstString(value=value):
                return self._literals(value)
            case formats.JsonSchema():
                return self._json(form)
            case formats.Regex(pattern=pattern):
                return self._rule(slashed(pattern), name="R")
            case formats.GrammarText(grammar=grammar):
                return self._grammar(grammar)
            case formats.Answer() if self._answer is not None:
                return self._answer
            case Tag():
                return f"{self._literals(form.begin)} {self.written(form.content, form.ends)}"
            case formats.TagsWithSeparator():
                return self._separated(form)
            case formats.Optional() | formats.Plus() | formats.Star() | formats.Repeat():
                return self._repeated(form)
            case formats.Answer():
                raise refusal("structural_tag", "must have no format of type answer")
        raise refusal("structural_tag", "must have elements in each or")

    def _repeated(
        self, form: formats.Optional | formats.Plus | formats.Star | formats.Repeat
    ) -> str:
        if _is_free(form.content):
            raise refusal("structural_tag", "must have an end to any text that repeats")
        content = self._rule(self.written(form.content))
        match form:
            case formats.Optional():
                return f"{content}?"
            case formats.Plus():
                return f"{content}+"
            case formats.Star():
                return f"{content}*"
        low, high = form.min, form.max
        if not (0 <= low <= MAX_REPEATS and (high == -1 or low <= high <= MAX_REPEATS)):
            complaint = f"must repeat from 0 to {MAX_REPEATS} times, or to -1"
            raise refusal("structural_tag", complaint)
        return f"{content}{{{low},{'' if high < 0 else high}}}"

    def _sequence(self, elements: Sequence[Format], then: Sequence[str]) -> str:
        """Return formats in a row. Free text ends at the fixed text that must follow it."""
        parts: list[str] = []
        left = list(elements)
        while left:
            first = left.pop(0)
            if not left:
                return " ".join([*parts, self.written(first, then)])
            if _is_free(first):
                match left[0]:
                    case ConstString(value=value) if value:
                        left.pop(0)
                    case Tag(begin=value) if value:
                        left[0] = msgspec.structs.replace(left[0], begin="")
                    case _:
                        complaint = "must have a const_string or a tag after any text"
                        raise refusal("structural_tag", complaint)
                parts.append(self.written(first, (value,)))
            else:
                parts.append(self.written(first))
        return " ".join([*parts, self._either(then)])

    def _triggered(self, form: TriggeredTags, then: Sequence[str]) -> str:
        """Return free text with tags in it, each of which begins with a trigger."""
        _check_number(form.tags)
        free = self._terminal(AnyText(excludes=form.excludes))
        by_trigger: dict[str, list[str]] = {}
        for tag in form.tags:
            trigger = next((t for t in form.triggers if t and tag.begin.startswith(t)), None)
            if trigger is None:
                complaint = "must have, for each of its tags, a trigger that it begins with"
                raise refusal("structural_tag", complaint)
            rest = msgspec.structs.replace(tag, begin=tag.begin.removeprefix(trigger))
            by_trigger.setdefault(trigger, []).append(self._rule(self.written(rest)))
        first = _either(
            f"{self._literals(trigger)} {_either(rests)}" for trigger, rests in by_trigger.items()
        )
        tagged = _either(
            f"{self._text(free, (trigger,))} {_either(rests)}"
            for trigger, rests in by_trigger.items()
        )
        text = self._text(free, then)
        if form.stop_after_first:
            end = self._either(then)
            return f"{first} {end}" if form.at_least_one else f"({tagged} {end} | {text})"
        rest_of_it = f"({tagged})* {text}"
        return f"{first} {rest_of_it}" if form.at_least_one else rest_of_it

    def _separated(self, form: formats.TagsWithSeparator) -> str:
        _check_number(form.tags)
        if form.max_tags is not None and not 0 < form.max_tags <= MAX_REPEATS:
            raise refusal("structural_tag", f"must have max_tags of 1 to {MAX_REPEATS}")
        tag = self._rule(_either(self.written(tag) for tag in form.tags))
        first = tag
        if form.begin:
            begun = (
                msgspec.structs.replace(tag, begin=form.begin + tag.begin) for tag in form.tags
            )
            first = _either(map(self.written, begun))
        tags = first
        if not form.stop_after_first and form.max_tags != 1:
            times = "*" if form.max_tags is None else f"{{0,{form.max_tags - 1}}}"
            tags = f"{first} ({self._literals(form.separator)} {tag}){times}"
        return f"({tags})" if form.at_least_one else f"({tags})?"

    def _text(self, terminal: str, then: Sequence[str]) -> str:
        """Return free text up to and including the first of the texts in `then`."""
        if not then:
            return self._rule(terminal, name="T")
        return _either(self._up_to(terminal, stop) for stop in then)

    def _up_to(self, terminal: str, stop: str) -> str:
        first, *others = _pieces(stop, self._markup)
        rest = " ".join(piece.lark for piece in others)
        text = self._rule(terminal, name="T")
        if first.is_special:
            return f"{text} {first.lark} {rest}"
        if not others:
            return self._rule(f"{text} {first.lark}", name="lazy", options="[lazy]")
        # Free text cannot contain the special token that follows, so it need not be lazy.
        return f"{self._rule(f'{text} {first.lark}', name='T')} {rest}"

    def _terminal(self, form: AnyText) -> str:
        terminal = without(ANY, form.excludes)
        if form.unlike:
            terminal += f" & ~/(?:{'|'.join(map(_spaced, form.unlike))})(?s:.*)/"
        return terminal

    def _grammar(self, grammar: str) -> str:
        try:
            return self._rule(f"%lark {{\n{any_to_lark(grammar)}\n}}")
        except Exception as error:  # the converter raises bare Exception
            complaint = "has a grammar that is neither Lark nor GBNF that can be read"
            raise refusal("structural_tag", complaint) from error

    def _json(self, form: formats.JsonSchema) -> str:
        options = self._whitespace if form.any_whitespace else DUMPED
        schema = followed(
            form.json_schema, options, kind="structural_tag", is_closed=self._is_closed
        )
        return self._rule(f"%json {json.dumps(schema, default=float)}")

    def _literals(self, text: str) -> str:
        return literals(text, self._markup)

    def _either(self, texts: Sequence[str]) -> str:
        return _either(map(self._literals, texts)) if texts else ""

    def _rule(self, body: str, *, name: str = "r", options: str = "") -> str:
        """Return the name of a rule with this body. A capitalized name makes it a terminal."""
        line = f"{options}: {body}"
        if line not in self._names:
            self._names[line] = f"{name}_{len(self._names)}"
            self.rules.append(self._names[line] + line)
        return self._names[line]


def _is_free(form: Format) -> bool:
    """Whether a format has no end of its own."""
    match form:
        case AnyText() | Terminal() | TriggeredTags():
            return True
        case formats.Or(elements=elements):
            return any(map(_is_free, elements))
        case formats.Sequence(elements=elements):
            return bool(elements) and _is_free(elements[-1])
        case Tag():
            return not form.ends and _is_free(form.content)
    return False


def _either(expressions: Iterable[str]) -> str:
    found = list(expressions)
    return found[0] if len(found) == 1 else f"({' | '.join(found)})"


def _check_number(tags: Sequence[Tag]) -> None:
    if not 0 < len(tags) <= MAX_TAGS:
        raise refusal("structural_tag", f"must have 1 to {MAX_TAGS} tags in one place")


def _spaced(text: str) -> str:
    """Return the regex of a text with any white space between its words."""
    return r"\s*" + r"\s*".join(map(regex_of, re.findall(r"\w+|\S", text)))
