"""Response parsers: reasoning, content and tool calls in the answers to a chat."""

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
from jaxserve.frontend.chat import Chat
from jaxserve.frontend.tools import text_of
from jaxserve.grammar import Function, can_bind
from jaxserve.tokenization.tokenizer import Tokenizer

# Tokens at the end of a prompt that show whether it opens reasoning.
NUM_TAIL_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseParserConfig:
    """How to parse the answers to one chat.

    schemas: parameters of the callable functions, by name. is_open: whether answers begin inside
    reasoning; None if the prompt does not tell. dropped: special tokens to remove from the text,
    which the detokenizer keeps because others are markup. shows_reasoning: whether the client wants
    reasoning. only_one_call: whether to drop calls after the first. custom_tools: functions that
    stand for custom tools.
    """

    form: AnswerFormat
    schemas: Schemas
    is_open: bool | None
    dropped: tuple[str, ...]
    shows_reasoning: bool
    only_one_call: bool
    custom_tools: frozenset[str]

    @classmethod
    def of(
        cls,
        chat: Chat,
        prompt_ids: Sequence[int],
        *,
        answers: AnswerFormat,
        tokenizer: Tokenizer,
        skip_special_tokens: bool = True,
        include_reasoning: bool = True,
        parallel_tool_calls: bool = True,
    ) -> "ResponseParserConfig":
        """Return the configuration for the answers to a prompt. answers: the model's format."""
        form = _asked_form(chat, answers)
        special = tokenizer.special_texts
        keeps_all = not skip_special_tokens or form.markers.isdisjoint(special)
        return cls(
            form=form,
            schemas={
                function.name: function.parameters or {} for function in chat.offered_functions
            },
            is_open=_is_open(chat, form, tokenizer, prompt_ids),
            dropped=() if keeps_all else tuple(sorted(special - form.markers)),
            shows_reasoning=include_reasoning,
            only_one_call=not parallel_tool_calls,
            custom_tools=chat.custom_tools,
        )

    @property
    def is_plain(self) -> bool:
        """Whether the text needs no parsing."""
        return not self.form.markers and self.form.tools is None

    def params(self, params: SamplingParams) -> SamplingParams:
        """Return sampling parameters that keep the special tokens which the parser needs."""
        return replace(params, skip_special_tokens=False) if self.dropped else params

    def parser(self) -> "ResponseParser":
        """Return a parser of one answer."""
        return ResponseParser(self)

    def token_counter(self, tokenizer: Tokenizer) -> Callable[[], ReasoningTokens] | None:
        """Return a factory of counters of reasoning tokens; None without a reasoning format."""
        reasoning = self.form.reasoning
        if reasoning is None:
            return None

        def ids(texts: Iterable[str]) -> list[tuple[int, ...]]:
            return [tokenizer.encode(text, add_special_tokens=False) for text in texts]

        return partial(
            ReasoningTokens,
            ids(reasoning.begins),
            ids((*reasoning.ends, *reasoning.ends_before)),
            is_open=self.is_open or (self.is_open is None and reasoning.is_assumed),
            repeats=isinstance(reasoning, Harmony),
        )


class ResponseParser:
    """Parser of one answer into the pieces that the client receives; numbers the tool calls."""

    def __init__(self, config: ResponseParserConfig) -> None:
        self._config = config
        self._parser = AnswerParser(
            config.form,
            schemas=config.schemas,
            is_open=config.is_open,
            dropped=config.dropped,
        )
        self._num_calls = 0
        # Arguments so far of a custom tool's call; its text is extracted once they are complete.
        self._arguments: list[str] | None = None

    @property
    def has_whole_call(self) -> bool:
        """Whether there is a tool call with complete arguments."""
        return self._parser.num_whole_calls > 0

    def feed(self, text: str, *, is_last: bool) -> list[Piece]:
        """Add text, and return the pieces that no further text can change."""
        pieces = self._parser.feed(text)
        if is_last:
            pieces += self._parser.finish()
        shown = [seen for piece in pieces if (seen := self._shown(piece)) is not None]
        return [*self._with_texts(shown), *(self._take_text() if is_last else ())]

    def _with_texts(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Yield pieces; calls of custom tools get their text in place of their arguments."""
        for piece in pieces:
            if piece.kind is Kind.ARGUMENTS and self._arguments is not None:
                self._arguments.append(piece.text)
                continue
            yield from self._take_text()
            if piece.kind is Kind.CALL and piece.text in self._config.custom_tools:
                self._arguments = []
            yield piece

    def _take_text(self) -> list[Piece]:
        """Return the text of the custom tool's call that has just ended, if there is one."""
        text = text_of("".join(self._arguments or ()))
        self._arguments = None
        return [Piece(Kind.ARGUMENTS, text)] if text else []

    def _shown(self, piece: Piece) -> Piece | None:
        if piece.kind is Kind.REASONING:
            return piece if self._config.shows_reasoning else None
        if piece.kind is Kind.CALL:
            self._num_calls += 1
            piece = piece._replace(call_id=piece.call_id or self._new_id())
        is_extra = piece.kind in {Kind.CALL, Kind.ARGUMENTS} and self._num_calls > 1
        return None if is_extra and self._config.only_one_call else piece

    def _new_id(self) -> str:
        tools = self._config.form.tools
        # Mistral's templates accept only ids of nine letters and digits.
        is_short = not isinstance(tools, Harmony) and tools is not None and tools.has_short_ids
        return uuid.uuid4().hex[:9] if is_short else f"call_{uuid.uuid4().hex}"


def grammar_functions(chat: Chat) -> list[Function]:
    """Return the functions that a chat offers, as input for grammars."""
    return [
        Function(name=function.name, parameters=function.parameters, strict=bool(function.strict))
        for function in chat.offered_functions
    ]


def _asked_form(chat: Chat, answers: AnswerFormat) -> AnswerFormat:
    """Return the format of the answers to a chat: the model's, if it can express forced calls."""
    tools = answers.tools if chat.offered_functions else None
    if chat.must_call and (tools is None or not can_bind(grammar_functions(chat), tools.written)):
        # Forced calls are a JSON list, which is not a harmony message.
        reasoning = None if isinstance(answers.reasoning, Harmony) else answers.reasoning
        return AnswerFormat(reasoning=reasoning, tools=forced.FORMAT)
    return AnswerFormat(reasoning=answers.reasoning, tools=tools)


def _is_open(
    chat: Chat, form: AnswerFormat, tokenizer: Tokenizer, prompt_ids: Sequence[int]
) -> bool | None:
    reasoning = form.reasoning
    if reasoning is not None and chat.continues_reasoning:
        return True
    if reasoning is None or isinstance(reasoning, Harmony):
        return None
    if chat.continue_final_message:
        return reasoning.is_open_in(chat.last_text)
    return reasoning.is_opened_by(tokenizer.decode(prompt_ids[-NUM_TAIL_TOKENS:]))
