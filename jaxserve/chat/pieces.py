"""Pieces of a parsed answer."""

from enum import StrEnum
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple


class Kind(StrEnum):
    """Kind of a piece. CALL begins a tool call; its ARGUMENTS follow."""

    CONTENT = "content"
    REASONING = "reasoning"
    CALL = "call"
    ARGUMENTS = "arguments"


class Piece(NamedTuple):
    """A piece of an answer. text: of a CALL the function's name. call_id: the model's own."""

    kind: Kind
    text: str
    call_id: str = ""


class Sink:
    """Collector of pieces; consecutive pieces of one kind are merged."""

    def __init__(self) -> None:
        self._found: list[Piece] = []
        self._is_after_markup = False
        self._has_arguments = True
        self.num_calls = 0
        self.num_whole_calls = 0

    def content(self, text: str) -> None:
        """Add content."""
        self._add_text(Kind.CONTENT, text)

    def reasoning(self, text: str) -> None:
        """Add reasoning."""
        self._add_text(Kind.REASONING, text)

    def call(self, name: str, call_id: str = "") -> None:
        """Begin a tool call."""
        self.num_calls += 1
        self._has_arguments = False
        self._found.append(Piece(Kind.CALL, name, call_id))

    def arguments(self, text: str) -> None:
        """Add to the JSON arguments of the current call."""
        self._has_arguments = True
        self._found.append(Piece(Kind.ARGUMENTS, text))

    def end_call(self) -> None:
        """End a complete call; if it has no arguments, they are an empty object.

        A truncated call is never ended and keeps the arguments it has.
        """
        if not self._has_arguments:
            self.arguments("{}")
        self.num_whole_calls += 1
        self._is_after_markup = True

    def after_markup(self) -> None:
        """Treat following white space as part of the markup before it."""
        self._is_after_markup = True

    def take(self) -> list[Piece]:
        """Return the pieces found since the last call."""
        pieces: list[Piece] = []
        for kind, group in groupby(self._found, key=attrgetter("kind")):
            if kind is Kind.CALL:
                pieces += group
            else:
                pieces.append(Piece(kind, "".join(piece.text for piece in group)))
        self._found = []
        return pieces

    def _add_text(self, kind: Kind, text: str) -> None:
        if self._is_after_markup:
            text = text.lstrip()
            self._is_after_markup = not text
        if text:
            self._found.append(Piece(kind, text))
