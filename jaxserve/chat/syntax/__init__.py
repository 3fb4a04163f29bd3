"""The few ways in which models write tool calls; each is a reader that formats are made of."""

from collections.abc import Mapping
from typing import Any, Protocol

from jaxserve.chat.pieces import Sink
from jaxserve.chat.source import Reading, Source

# What a function's parameters are, by the function's name: JSON schemas of objects.
type Schemas = Mapping[str, Mapping[str, Any]]


class CallSyntax(Protocol):
    """How one call is written.

    begins: texts that a call can begin with, where that shows it from afar.
    """

    @property
    def begins(self) -> tuple[str, ...]:
        """See the class."""
        ...

    def read(self, source: Source, sink: Sink, schemas: Schemas) -> Reading[bool]:
        """Read one call into `sink`; return whether it was one, and whole.

        If not, what was read since the source's mark is no part of a call: text. A reader moves
        the mark with what it has understood.
        """
        ...
