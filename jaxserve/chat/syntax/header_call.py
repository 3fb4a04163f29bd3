"""Calls with the name in a header before JSON arguments: `weather<sep>{"city": "Oslo"}`."""

import re
from dataclasses import dataclass

from jaxserve.chat.pieces import Sink
from jaxserve.chat.source import Reading, Source
from jaxserve.chat.syntax import Schemas
from jaxserve.chat.syntax.json_value import read_arguments


@dataclass(frozen=True, slots=True)
class HeaderCall:
    """A header up to `end`, then JSON.

    header: pattern of the stripped header, with the group `name`, and `id` if models write call
    ids.
    """

    header: re.Pattern[str]
    end: str

    @property
    def begins(self) -> tuple[str, ...]:
        """Empty, because a header begins with a name."""
        return ()

    def read(self, source: Source, sink: Sink, schemas: Schemas) -> Reading[bool]:
        """See CallSyntax."""
        del schemas
        text = yield from source.short_until((self.end,))
        header = None if text is None else self.header.fullmatch(text.strip())
        if header is None:
            return False
        yield from source.accept(self.end)
        sink.call(header["name"], header.groupdict().get("id") or "")
        source.mark()
        start = source.position
        is_whole = yield from read_arguments(source, sink.arguments)
        has_none = source.position == start and bool((yield from source.peek()))
        if is_whole or has_none:
            sink.end_call()
        return True
