"""Structured outputs for function calls, built from the declared functions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from jaxserve.api.structured_outputs import StructuredOutputsParams, refusal
from jaxserve.chat.call_form import CallForm
from jaxserve.chat.harmony import ASSISTANT, CHANNEL, MESSAGE, Harmony
from jaxserve.chat.tool_format import ToolFormat
from jaxserve.errors import InvalidRequestError
from jaxserve.grammar.alternatives import schema_or_calls
from jaxserve.grammar.formats import (
    Answer,
    AnyText,
    ConstString,
    Format,
    JsonSchema,
    Optional,
    Or,
    Regex,
    Star,
    StructuralTag,
    Tag,
    TagsWithSeparator,
    TriggeredTags,
)
from jaxserve.grammar.formats import Sequence as Row
from jaxserve.grammar.loose_schemas import loosened
from jaxserve.grammar.parameters import LINE_BREAK, filled, parameters

type Schema = Mapping[str, Any]

TOO_DEEP = "has too deep a schema"
# Without a limit, an undecided model would call functions up to the length limit of its answer.
MAX_FORCED_CALLS = 32
PLACES = re.compile(r"\{(arguments|index|n)\}")
INDEX = Regex(pattern="0|[1-9][0-9]{0,2}")

# Keywords that may constrain or declare further properties.
_SAY_OF_OTHERS = {
    "additionalProperties",
    "patternProperties",
    "unevaluatedProperties",
    "minProperties",
    "$ref",
    "allOf",
    "anyOf",
    "oneOf",
    "if",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function that a model may call.

    parameters: JSON schema of the arguments; None for any object. strict: whether the arguments
    must follow the schema even if the model chooses freely whether to call.
    """

    name: str
    parameters: Schema | None = None
    strict: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of the arguments, which are an object. Raises InvalidRequestError.

        A schema that declares properties, and no rule for others, forbids others: a constrained
        model would otherwise invent some. Unsupported keywords are removed unless the function is
        strict.
        """
        if self.parameters is None:
            return {"type": "object"}
        try:
            parameters = self.parameters if self.strict else loosened(self.parameters)
        except RecursionError as error:
            raise refusal("structural_tag", TOO_DEEP) from error
        schema = {"type": "object", **parameters}
        if "properties" in schema and _SAY_OF_OTHERS.isdisjoint(schema):
            schema["additionalProperties"] = False
        return schema


def can_bind(functions: Sequence[Function], form: CallForm) -> bool:
    """Whether a grammar can express calls of these functions, with all arguments, in a form."""
    try:
        for function in functions:
            if not re.fullmatch(form.name, function.name):
                return False
            if form.style != "json":
                parameters(function.schema, form.style)
    except (InvalidRequestError, RecursionError):
        return False
    return True


def forced_calls(
    functions: Sequence[Function], form: CallForm, *, parallel: bool
) -> StructuredOutputsParams:
    """Return structured outputs for an answer of calls only, with arguments that follow schemas.

    parallel: whether to allow up to MAX_FORCED_CALLS calls instead of one.
    """
    calls = _calls(functions, form, max_calls=MAX_FORCED_CALLS if parallel else 1)
    if not form.after_reasoning:
        return _bound(calls)
    return _bound(Row(elements=[_perhaps(form.after_reasoning), calls]))


def strict_calls(
    functions: Sequence[Function], tools: ToolFormat | Harmony, *, parallel: bool
) -> StructuredOutputsParams | None:
    """Return structured outputs that constrain the arguments of strict functions only.

    The model chooses whether to call. Arguments of other functions may be any object. Return None
    if no function is strict.
    """
    if not any(function.strict for function in functions):
        return None
    form = tools.written
    functions = [
        function if function.strict else Function(name=function.name) for function in functions
    ]
    max_calls = None if parallel else 1
    if isinstance(tools, Harmony):
        calls = _calls(functions, form, max_calls=max_calls)
        return _bound(_messages([calls], answer=AnyText()))
    if tools.is_bare:
        # An answer that does not begin like a call is text.
        before_name = form.begin + form.call.partition("{name}")[0]
        unlike = [before_name + function.name for function in functions]
        text = AnyText(unlike=unlike, excludes=[*tools.begins])
        return _bound(Or(elements=[_calls(functions, form, max_calls=max_calls), text]))
    tags = [_call(function, form) for function in functions]
    if form.begin:
        calls = _calls(functions, replace(form, begin=""), max_calls=max_calls)
        tags = [Tag(begin=form.begin, content=calls, end="")]
    trigger, *others = (*tools.begins, *tools.call.begins)
    return _bound(
        TriggeredTags(triggers=[trigger], tags=tags, stop_after_first=not parallel, excludes=others)
    )


def calls_or(
    asked: StructuredOutputsParams,
    functions: Sequence[Function],
    tools: ToolFormat | Harmony | None,
    *,
    parallel: bool,
) -> StructuredOutputsParams:
    """Return structured outputs for an answer of either calls, or the requested form.

    asked: the requested form, without any text around it. Arguments of strict functions follow
    their schemas; those of others may be any object. Functions that are not strict and cannot be
    expressed in the model's call form, such as for their names, are left out. tools: None if calls
    are not parsed.
    """
    if tools is None:
        return asked
    form = tools.written
    functions = [
        function if function.strict else Function(name=function.name) for function in functions
    ]
    functions = [each for each in functions if each.strict or can_bind([each], form)]
    max_calls = None if parallel else 1
    if isinstance(tools, Harmony):
        some = [_calls(functions, form, max_calls=max_calls)] if functions else []
        return replace(asked, frame=_text(_messages(some, answer=Answer())))
    if not functions:
        return asked
    if form.is_json and asked.kind in {"json", "json_object"}:
        # Calls and answers both begin with a brace, so one schema must describe both.
        schema = schema_or_calls(
            msgspec.json.decode(asked.json) if isinstance(asked.json, str) else {"type": "object"},
            [(form.json_call(function.name), function.schema) for function in functions],
        )
        return replace(asked, json=schema, json_object=None)
    calls = _calls(functions, form, max_calls=max_calls)
    return replace(asked, frame=_text(Or(elements=[calls, Answer()])))


def _calls(functions: Sequence[Function], form: CallForm, *, max_calls: int | None) -> Row:
    """Return the format of one or more calls. max_calls: None for no limit."""
    calls = TagsWithSeparator(
        tags=[_call(function, form) for function in functions],
        separator=form.between,
        at_least_one=True,
        # Joined to the first call, to be distinguishable from a text with the same beginning.
        begin=form.begin,
        max_tags=1 if form.is_single else max_calls,
    )
    return Row(elements=[calls, ConstString(value=form.end)])


def _call(function: Function, form: CallForm) -> Tag:
    arguments = JsonSchema(json_schema=function.schema, style=form.style, any_whitespace=False)
    parts: dict[str, Format] = {"arguments": arguments, "index": INDEX, "n": LINE_BREAK}
    text = form.call.replace("{name}", function.name)
    first, *rest = filled(text, PLACES, parts).elements
    assert isinstance(first, ConstString), "a call begins with a text"
    return Tag(begin=first.value, content=Row(elements=rest), end="")


def _messages(calls: Sequence[Format], *, answer: Format) -> Format:
    """Return the format of harmony messages, the last of which is an answer or calls.

    Commentary before a call is content, so it is allowed only if the answer may be any text.
    """
    names = ["analysis", "commentary"] if isinstance(answer, AnyText) else ["analysis"]
    channel = Or(elements=[ConstString(value=name) for name in names])
    body = Row(elements=[channel, ConstString(value=MESSAGE), AnyText()])
    before = Tag(begin=CHANNEL, content=body, end=f"<|end|>{ASSISTANT}")
    final = Tag(begin=f"{CHANNEL}final{MESSAGE}", content=answer, end="")
    return Row(elements=[_perhaps(ASSISTANT), Star(content=before), Or(elements=[final, *calls])])


def _perhaps(text: str) -> Format:
    return Optional(content=ConstString(value=text))


def _bound(form: Format) -> StructuredOutputsParams:
    return StructuredOutputsParams(structural_tag=_text(form))


def _text(form: Format) -> str:
    try:
        return msgspec.json.encode(StructuralTag(format=form)).decode()
    except RecursionError as error:
        raise refusal("structural_tag", TOO_DEEP) from error
