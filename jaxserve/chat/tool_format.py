"""Formats of tool calls in answers, and how to read them."""

from dataclasses import dataclass

from jaxserve.chat.call_form import CallForm
from jaxserve.chat.pieces import Sink
from jaxserve.chat.source import Reading, Source
from jaxserve.chat.syntax import CallSyntax, Schemas


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """Calls of one syntax, and the markers around them.

    begins: markers that open calls. between and ends: optional markers between and after calls.
    chains: whether calls may follow each other without a marker. is_bare: whether an answer may
    also begin with a call without a marker. has_short_ids: whether the model's template requires
    call ids of nine characters. signs: texts that the template of such a model contains; empty if
    the calls it writes identify it. written: the form of calls that a grammar enforces; they open
    with the first of `begins`, unless they are bare.
    """

    call: CallSyntax
    written: CallForm
    begins: tuple[str, ...] = ()
    between: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    chains: bool = False
    is_bare: bool = False
    has_short_ids: bool = False
    signs: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        """Special tokens that the detokenizer must keep in the text."""
        return (*self.begins, *self.call.begins, *self.ends)

    def read(self, source: Source, sink: Sink, schemas: Schemas) -> Reading[None]:
        """Read the rest of an answer: calls, and the text around them.

        Text that only looked like a call is content, unchanged.
        """
        begins = (*self.begins, *self.call.begins)
        between = (*self.begins, *self.between, *self.ends)
        if not self.is_bare:
            yield from source.until(begins, sink.content, trims=True)
        while (yield from source.peek()):
            source.mark()
            may_call = self.is_bare
            num_before = sink.num_calls
            while True:
                found = yield from source.accept(*between)
                if not found and sink.num_calls > num_before and source.is_cut_within(*between):
                    # The truncated text is markup.
                    source.skip_rest()
                    return
                if found in self.ends:
                    sink.after_markup()
                    source.mark()
                    may_call = False
                elif found:
                    may_call = True
                elif may_call or self.call.begins:
                    num_calls = sink.num_calls
                    is_whole = yield from self.call.read(source, sink, schemas)
                    if not is_whole and sink.num_calls == num_calls:
                        break
                    sink.content("" if is_whole else source.release())
                    source.mark()
                    may_call = is_whole and self.chains
                else:
                    break
            sink.content(source.release())
            yield from source.until(begins, sink.content, trims=True)
