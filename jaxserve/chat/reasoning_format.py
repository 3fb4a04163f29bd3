"""How models of one kind set their reasoning apart from their answers, and how it is read."""

from dataclasses import dataclass

from jaxserve.chat.pieces import Sink
from jaxserve.chat.source import Reading, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningFormat:
    """Reasoning at the beginning of an answer, between two texts.

    begins and ends: those texts, or several that may stand for each. ends_before: what ends it
    too and belongs to the answer. wraps: what may stand around the answer proper. is_assumed:
    whether an answer that does not say otherwise begins with reasoning. signs: texts of which the
    chat template of such a model has each; none if that cannot be told.
    """

    begins: tuple[str, ...]
    ends: tuple[str, ...]
    ends_before: tuple[str, ...] = ()
    wraps: tuple[str, str] | None = None
    is_assumed: bool = False
    signs: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        """The texts that show where reasoning is, which the tokenizer must leave in."""
        return (*self.begins, *self.ends, *self.ends_before)

    def is_opened_by(self, prompt: str) -> bool | None:
        """Whether the answer to a prompt begins within reasoning; None if the model chooses."""
        tail = prompt.rstrip()
        if tail.endswith(self.begins):
            return True
        return False if tail.endswith(self.ends) else None

    def opened(self, prompt: str, *, begin: str) -> str:
        """Return a prompt with the beginning of reasoning at its end, in place of an end."""
        for end in self.ends:
            if prompt.rstrip().endswith(end):
                prompt = prompt.rstrip().removesuffix(end)
        return prompt if prompt.rstrip().endswith(self.begins) else prompt + begin

    def is_open_in(self, text: str) -> bool:
        """Whether a text, the beginning of an answer, ends within reasoning."""
        begin = max(text.rfind(marker) for marker in self.begins)
        return begin > max(text.rfind(marker) for marker in self.ends)

    def read(self, source: Source, sink: Sink, *, is_open: bool | None) -> Reading[None]:
        """Read an answer's reasoning, if there is some, up to the answer proper."""
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
