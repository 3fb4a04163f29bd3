"""Syntaxes of tool calls. A ToolFormat combines one of them with the markers around calls."""

from collections.abc import Mapping
from typing import Any, Protocol

from jaxserve.chat.pieces import Sink
from jaxserve.chat.source import Reading, Source

# JSON schemas of the parameters of functions, by function name.
type Schemas = Mapping[str, Mapping[str, Any]]


class CallSyntax(Protocol):
    """Syntax of a single call.

    begins: markers that a call begins with; empty if a call has no distinctive beginning.
    """

    @property
    def begins(self) -> tuple[str, ...]:
        """See the class."""
        ...

    def read(self, source: Source, sink: Sink, schemas: Schemas) -> Reading[bool]:
        """Read one call into `sink`; return whether it was a complete call.

        If not, the text read since the source's mark is not part of a call. A reader moves the mark
        past what it has recognized.
        """
        ...
