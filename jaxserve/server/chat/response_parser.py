"""How the answers to one chat are read: what is reasoning in them, and what are calls."""

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from jaxserve.api.sampling_params import SamplingParams
from jaxserve.chat import forced
from jaxserve.chat.harmony import Harmony
from jaxserve.chat.parser import AnswerFormat, AnswerParser
from jaxserve.chat.pieces import Kind, Piece
from jaxserve.chat.reasoning_tokens import ReasoningTokens
from jaxserve.chat.syntax import Schemas
from jaxserve.frontend.tools import text_of
from jaxserve.grammar import Function, can_bind
from jaxserve.server.chat.schema import ChatBody
from jaxserve.server.models import ServedModel
from jaxserve.server.schema.answers import (
    CalledCustomTool,
    CalledFunction,
    ChatMessage,
    CustomToolCall,
    ToolCall,
)

# Tokens at the end of a prompt that show whether it opens reasoning.
NUM_TAIL_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatReading:
    """What the answers to a chat are read by.

    schemas: of the functions that can be called. is_open: whether answers begin within reasoning,
    as far as the prompt says. dropped: special tokens to be left out of the text here, as the
    detokenizer must leave in those that are markup. shows_reasoning: whether the client wants it.
    only_one_call: whether calls after the first are left out. custom_tools: functions that take
    the text for a custom tool.
    """

    form: AnswerFormat
    schemas: Schemas
    is_open: bool | None
    dropped: tuple[str, ...]
    shows_reasoning: bool
    only_one_call: bool
    custom_tools: frozenset[str]

    @classmethod
    def of(cls, body: ChatBody, model: ServedModel, prompt_ids: Sequence[int]) -> "ChatReading":
        """Return how the answers of a model to a prompt are read."""
        form = asked_format(body, model)
        special = model.tokenizer.special_texts
        keeps_all = not body.skip_special_tokens or form.markers.isdisjoint(special)
        return cls(
            form=form,
            schemas={
                function.name: function.parameters or {} for function in body.offered_functions
            },
            is_open=_is_open(body, form, model, prompt_ids),
            dropped=() if keeps_all else tuple(sorted(special - form.markers)),
            shows_reasoning=body.include_reasoning,
            only_one_call=not body.parallel_tool_calls,
            custom_tools=body.custom_tools,
        )

    @property
    def is_plain(self) -> bool:
        """Whether the text is the answer as it is."""
        return not self.form.markers and self.form.tools is None

    def params(self, params: SamplingParams) -> SamplingParams:
        """Return the engine's parameters with what reading the answers needs."""
        return replace(params, skip_special_tokens=False) if self.dropped else params

    def parser(self) -> "ChatParser":
        """Return what reads one answer."""
        return ChatParser(self)

    def counter(self, model: ServedModel) -> Callable[[], ReasoningTokens] | None:
        """Return what makes the counter of reasoning in one answer; None if there is none."""
        reasoning = self.form.reasoning
        if reasoning is None:
            return None

        def ids(texts: Iterable[str]) -> list[tuple[int, ...]]:
            return [model.tokenizer.encode(text, add_special_tokens=False) for text in texts]

        return partial(
            ReasoningTokens,
            ids(reasoning.begins),
            ids((*reasoning.ends, *reasoning.ends_before)),
            is_open=self.is_open or (self.is_open is None and reasoning.is_assumed),
            repeats=isinstance(reasoning, Harmony),
        )


class ChatParser:
    """Reads one answer into pieces that the client is to see; calls get their ids."""

    def __init__(self, reading: ChatReading) -> None:
        self._reading = reading
        self._parser = AnswerParser(
            reading.form,
            schemas=reading.schemas,
            is_open=reading.is_open,
            dropped=reading.dropped,
        )
        self._num_calls = 0
        # Arguments so far of a custom tool's call, whose text is read from all of them.
        self._arguments: list[str] | None = None

    @property
    def has_whole_call(self) -> bool:
        """Whether the arguments of a tool call are all there."""
        return self._parser.num_whole_calls > 0

    def read(self, text: str, *, is_last: bool) -> list[Piece]:
        """Return the pieces that are certain, now that `text` has come."""
        pieces = self._parser.feed(text)
        if is_last:
            pieces += self._parser.finish()
        shown = [seen for piece in pieces if (seen := self._shown(piece)) is not None]
        return [*self._with_texts(shown), *(self._take_text() if is_last else ())]

    def message(self, text: str, *, echoed: str) -> ChatMessage:
        """Return the message of a whole text."""
        texts: dict[Kind, list[str]] = {kind: [] for kind in Kind}
        texts[Kind.CONTENT].append(echoed)
        calls: list[ToolCall | CustomToolCall] = []
        for kind, piece, call_id in self.read(text, is_last=True):
            if kind is Kind.CALL:
                calls.append(self._call(call_id, piece))
            elif kind is Kind.ARGUMENTS:
                match calls[-1]:
                    case ToolCall(function=function):
                        function.arguments += piece
                    case CustomToolCall(custom=custom):
                        custom.input += piece
            else:
                texts[kind].append(piece)
        content, reasoning = "".join(texts[Kind.CONTENT]), "".join(texts[Kind.REASONING])
        message = ChatMessage(content if content or not (calls or reasoning) else None)
        if reasoning:
            message.reasoning = message.reasoning_content = reasoning
        if calls:
            message.tool_calls = calls
        return message

    def _call(self, call_id: str, name: str) -> ToolCall | CustomToolCall:
        if name in self._reading.custom_tools:
            return CustomToolCall(call_id, CalledCustomTool(name, ""))
        return ToolCall(call_id, CalledFunction(name, ""))

    def _with_texts(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Yield pieces, with the text for a custom tool instead of the arguments that hold it."""
        for piece in pieces:
            if piece.kind is Kind.ARGUMENTS and self._arguments is not None:
                self._arguments.append(piece.text)
                continue
            yield from self._take_text()
            if piece.kind is Kind.CALL and piece.text in self._reading.custom_tools:
                self._arguments = []
            yield piece

    def _take_text(self) -> list[Piece]:
        """Return the text of a custom tool's call that is over."""
        text = text_of("".join(self._arguments or ()))
        self._arguments = None
        return [Piece(Kind.ARGUMENTS, text)] if text else []

    def _shown(self, piece: Piece) -> Piece | None:
        if piece.kind is Kind.REASONING:
            return piece if self._reading.shows_reasoning else None
        if piece.kind is Kind.CALL:
            self._num_calls += 1
            piece = piece._replace(call_id=piece.call_id or self._new_id())
        is_extra = piece.kind in {Kind.CALL, Kind.ARGUMENTS} and self._num_calls > 1
        return None if is_extra and self._reading.only_one_call else piece

    def _new_id(self) -> str:
        tools = self._reading.form.tools
        # Mistral's templates take ids of nine letters and digits and no others.
        is_short = not isinstance(tools, Harmony) and tools is not None and tools.has_short_ids
        return uuid.uuid4().hex[:9] if is_short else f"call_{uuid.uuid4().hex}"


def asked_format(body: ChatBody, model: ServedModel) -> AnswerFormat:
    """Return the format of the answers to a chat: the model's, if it can hold what is forced."""
    form = model.answers
    tools = form.tools if body.offered_functions else None
    if body.must_call and (tools is None or not can_bind(functions_of(body), tools.written)):
        # A list of JSON is no message of harmony's.
        reasoning = None if isinstance(form.reasoning, Harmony) else form.reasoning
        return AnswerFormat(reasoning=reasoning, tools=forced.FORMAT)
    return AnswerFormat(reasoning=form.reasoning, tools=tools)


def functions_of(body: ChatBody) -> list[Function]:
    """Return the functions that a chat offers, as grammars know them."""
    return [
        Function(name=function.name, parameters=function.parameters, strict=bool(function.strict))
        for function in body.offered_functions
    ]


def _is_open(
    body: ChatBody, form: AnswerFormat, model: ServedModel, prompt_ids: Sequence[int]
) -> bool | None:
    reasoning = form.reasoning
    if reasoning is not None and body.continues_reasoning:
        return True
    if reasoning is None or isinstance(reasoning, Harmony):
        return None
    if body.continue_final_message:
        return reasoning.is_open_in(body.last_text)
    return reasoning.is_opened_by(model.tokenizer.decode(prompt_ids[-NUM_TAIL_TOKENS:]))
