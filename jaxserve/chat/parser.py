"""Incremental parser of answers: content, reasoning and tool calls."""

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
    """The formats of reasoning and tool calls in an answer; None leaves that part in the text."""

    reasoning: ReasoningFormat | Harmony | None = None
    tools: ToolFormat | Harmony | None = None

    @property
    def markers(self) -> frozenset[str]:
        """Special tokens that the detokenizer must keep in the text."""
        formats = (self.reasoning, self.tools)
        return frozenset(text for form in formats if form is not None for text in form.markers)

    def read(
        self, source: Source, sink: Sink, *, schemas: Schemas, is_open: bool | None
    ) -> Reading[None]:
        """Read a whole answer.

        schemas: parameters of the callable functions, by name. is_open: whether the answer begins
        inside reasoning; None if the prompt does not tell.
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
    """Parser of one answer, fed piece by piece; the result does not depend on the pieces.

    No text makes it raise, and it drops nothing but markup and `dropped`.

    dropped: texts to leave out, such as special tokens that are not markup.
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
        """Number of complete tool calls."""
        return self._sink.num_whole_calls

    def feed(self, text: str) -> list[Piece]:
        """Add text, and return the pieces that no further text can change."""
        if text:
            self._source.add(text)
            self._go_on()
        return self._sink.take()

    def finish(self) -> list[Piece]:
        """Return the remaining pieces at the end of the answer."""
        self._source.is_whole = True
        self._go_on()
        return self._sink.take()

    def _go_on(self) -> None:
        next(self._reader, None)
