"""Formats of reasoning in answers, and how to read them."""

from dataclasses import dataclass

from jaxserve.chat.pieces import Sink
from jaxserve.chat.source import Reading, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningFormat:
    """Reasoning at the beginning of an answer, between two markers.

    begins and ends: the markers, with alternatives. ends_before: texts that also end the reasoning
    and belong to the answer. wraps: markers that may enclose the answer itself. is_assumed: whether
    an answer without a marker begins with reasoning. signs: texts that the chat template of such a
    model contains; empty if it cannot be recognized.
    """

    begins: tuple[str, ...]
    ends: tuple[str, ...]
    ends_before: tuple[str, ...] = ()
    wraps: tuple[str, str] | None = None
    is_assumed: bool = False
    signs: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        """Special tokens that the detokenizer must keep in the text."""
        return (*self.begins, *self.ends, *self.ends_before)

    def is_opened_by(self, prompt: str) -> bool | None:
        """Whether the answer to a prompt begins inside reasoning; None if the model decides."""
        tail = prompt.rstrip()
        if tail.endswith(self.begins):
            return True
        return False if tail.endswith(self.ends) else None

    def opened(self, prompt: str, *, begin: str) -> str:
        """Return the prompt with reasoning opened at its end, replacing a closing marker there."""
        for end in self.ends:
            if prompt.rstrip().endswith(end):
                prompt = prompt.rstrip().removesuffix(end)
        return prompt if prompt.rstrip().endswith(self.begins) else prompt + begin

    def is_open_in(self, text: str) -> bool:
        """Whether the beginning of an answer ends inside reasoning."""
        begin = max(text.rfind(marker) for marker in self.begins)
        return begin > max(text.rfind(marker) for marker in self.ends)

    def read(self, source: Source, sink: Sink, *, is_open: bool | None) -> Reading[None]:
        """Read the reasoning, if any, up to the answer itself."""
        if is_open is False:
            return
        begin = yield from source.accept(*self.begins)
        if not (begin or is_open or self.is_assumed):
            return
        sink.after_markup()
        ends = (*self.ends, *self.ends_before)
        end = yield from source.until(ends, sink.reasoning, trims=True)
        if end in self.ends:
            yield from source.accept(end)
        if self.wraps and (yield from source.accept(self.wraps[0])):
            source.drop(self.wraps[1])
        sink.after_markup()
