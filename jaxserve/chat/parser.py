"""From the text of an answer to content, reasoning and tool calls, while it comes."""

from collections.abc import Iterable
from dataclasses import dataclass

from jaxserve.chat.harmony import Harmony, read_messages
from jaxserve.chat.pieces import Piece, Sink
from jaxserve.chat.reasoning_format import ReasoningFormat
from jaxserve.chat.source import Reading, Source
from jaxserve.chat.syntax import Schemas
from jaxserve.chat.tool_format import ToolFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFormat:
    """How an answer is written: its reasoning and its tool calls, each None if left in the text."""

    reasoning: ReasoningFormat | Harmony | None = None
    tools: ToolFormat | Harmony | None = None

    @property
    def markers(self) -> frozenset[str]:
        """The texts that show what is where, which the tokenizer must leave in."""
        formats = (self.reasoning, self.tools)
        return frozenset(text for form in formats if form is not None for text in form.markers)

    def read(
        self, source: Source, sink: Sink, *, schemas: Schemas, is_open: bool | None
    ) -> Reading[None]:
        """Read a whole answer.

        schemas: of the functions that can be called. is_open: whether the answer begins within
        reasoning, as far as the prompt says.
        """
        if isinstance(self.reasoning, Harmony) or isinstance(self.tools, Harmony):
            yield from read_messages(
                source,
                sink,
                splits_reasoning=self.reasoning is not None,
                finds_calls=self.tools is not None,
                is_open=bool(is_open) and self.reasoning is not None,
            )
            return
        if self.reasoning is not None:
            yield from self.reasoning.read(source, sink, is_open=is_open)
        if self.tools is not None:
            yield from self.tools.read(source, sink, schemas)
        yield from source.until((), sink.content)


class AnswerParser:
    """Reads one answer, piece by piece; what the pieces are changes nothing of what is found.

    Never raises for what the text is, and loses nothing of it but the markup.

    dropped: texts that are to be left out, such as special tokens that are no markup.
    """

    def __init__(
        self,
        form: AnswerFormat,
        *,
        schemas: Schemas | None = None,
        is_open: bool | None = None,
        dropped: Iterable[str] = (),
    ) -> None:
        self._source = Source(dropped=tuple(dropped))
        self._sink = Sink()
        self._reader = form.read(self._source, self._sink, schemas=schemas or {}, is_open=is_open)

    @property
    def num_whole_calls(self) -> int:
        """Tool calls whose arguments are all there."""
        return self._sink.num_whole_calls

    def feed(self, text: str) -> list[Piece]:
        """Return what is certain of the answer, now that `text` has come."""
        if text:
            self._source.add(text)
            self._go_on()
        return self._sink.take()

    def finish(self) -> list[Piece]:
        """Return the rest: no more text will come."""
        self._source.is_whole = True
        self._go_on()
        return self._sink.take()

    def _go_on(self) -> None:
        next(self._reader, None)
