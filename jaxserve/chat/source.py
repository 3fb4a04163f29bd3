"""Incremental text source for readers that are generators.

A reader yields when it needs more text. It asks `Source` only questions whose answers cannot
change when more text arrives. So its result does not depend on how the text was divided: tests of
whole texts hold for streams.

Each question looks ahead a bounded distance, and text is held back only until its question is
answered. The work is linear in the length of the text.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Generator
from functools import lru_cache

type Reading[T] = Generator[None, None, T]
type Emit = Callable[[str], object]

# Characters of white space next to markup that count as markup.
MAX_SPACE = 64
SPACE = re.compile(rf"\s{{0,{MAX_SPACE}}}")
# Longest name, id, key or header of a call.
MAX_SHORT = 256


class Markers:
    """A set of markers to search for; the earliest match wins."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        # Longest first: if two markers begin at one place, the longer one matches.
        self._texts = sorted(texts)
        self._max_chars = max(map(len, texts), default=0)
        longest_first = sorted(texts, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._firsts = re.compile(
            "[" + re.escape("".join({text[0] for text in texts}) or "\0") + "]"
        )

    def find(self, text: str, start: int) -> tuple[int, str]:
        """Return the position of the first marker, and the marker.

        If there is none, return "" and the position of a possible incomplete marker, or the end.
        """
        match = self._pattern.search(text, start)
        if match is not None:
            return match.start(), match[0]
        for first in self._firsts.finditer(text, max(start, len(text) - self._max_chars + 1)):
            if self.is_begun(text[first.start() :]):
                return first.start(), ""
        return len(text), ""

    def is_begun(self, text: str) -> bool:
        """Whether a marker begins with `text`."""
        position = bisect_left(self._texts, text)
        return position < len(self._texts) and self._texts[position].startswith(text)


@lru_cache(maxsize=256)
def markers(texts: tuple[str, ...], dropped: tuple[str, ...] = ()) -> Markers:
    """Return markers of these texts, and of the other texts that they do not contain.

    A text may contain another only at its end; otherwise a match could depend on later text.
    """
    others = tuple(other for other in dropped if not any(other in text for text in texts))
    return Markers((*texts, *others))


class Source:
    """The unread text of one answer.

    dropped: texts to skip while searching for markers, such as special tokens that the reader does
    not know.
    """

    def __init__(self, *, dropped: tuple[str, ...] = ()) -> None:
        self._dropped = dropped
        self._text = ""
        self._at = 0
        self._mark: int | None = None
        self._num_read_before = 0
        self.is_whole = False

    @property
    def position(self) -> int:
        """Number of characters read."""
        return self._num_read_before + self._at

    def add(self, text: str) -> None:
        """Add text."""
        kept = self._at if self._mark is None else self._mark
        self._text = self._text[kept:] + text
        self._num_read_before += kept
        self._at -= kept
        self._mark = None if self._mark is None else 0

    def drop(self, text: str) -> None:
        """Skip a text from now on."""
        self._dropped = (*self._dropped, text)

    def mark(self) -> None:
        """Keep text from this position until `release`."""
        self._mark = self._at

    def release(self) -> str:
        """Return the text read since the mark, and remove the mark."""
        assert self._mark is not None, "nothing is marked"
        text = self._text[self._mark : self._at]
        self._mark = None
        return text

    def take(self, pattern: re.Pattern[str], *, limit: int | None = None) -> str:
        """Read the available text that matches here, at most `limit` characters."""
        stop = len(self._text) if limit is None else min(len(self._text), self._at + limit)
        match = pattern.match(self._text, self._at, stop)
        text = "" if match is None else match[0]
        self._at += len(text)
        return text

    def skip(self, num_chars: int) -> str:
        """Read `count` characters, which must be available."""
        text = self._text[self._at : self._at + num_chars]
        assert len(text) == num_chars, "reading beyond the text"
        self._at += num_chars
        return text

    def peek(self, num_chars: int = 1) -> Reading[str]:
        """Return the next characters without reading them: fewer only where the text ends."""
        while len(self._text) - self._at < num_chars and not self.is_whole:
            yield
        return self._text[self._at : self._at + num_chars]

    def until(
        self,
        texts: tuple[str, ...],
        emit: Emit,
        *,
        trims: bool = False,
        drops_begun: bool = False,
    ) -> Reading[str]:
        """Pass text on up to the first of some markers, which is not read; "" if the text ends.

        trims: white space before the marker is not read either. drops_begun: where the text ends
        in the middle of a marker, that is dropped.
        """
        wanted = markers(texts, self._dropped)
        while True:
            place, marker = wanted.find(self._text, self._at)
            if marker and marker not in texts:
                self._emit_to(place, emit)
                self._at += len(marker)
                continue
            if trims and (marker or not self.is_whole):
                place -= _num_trailing_spaces(self._text, self._at, place)
            if not marker and self.is_whole and not drops_begun:
                place = len(self._text)
            self._emit_to(place, emit)
            if marker or self.is_whole:
                if not marker:
                    self.skip_rest()
                return marker
            yield

    def accept(self, *texts: str) -> Reading[str]:
        """Read the one of `texts` that comes next, and white space before it; "" if none does.

        Then nothing is read.
        """
        while True:
            space = SPACE.match(self._text, self._at)
            start = self._at if space is None else space.end()
            rest = self._text[start : start + MAX_SHORT]
            if self.is_whole or not any(text != rest and text.startswith(rest) for text in texts):
                found = max((text for text in texts if rest.startswith(text)), key=len, default="")
                if found:
                    self._at = start + len(found)
                return found
            yield

    def is_cut_within(self, *texts: str) -> bool:
        """Whether the text ends here, or in the middle of one of these texts.

        Only after `accept` has found none of them, which tells the same whatever the pieces were.
        """
        space = SPACE.match(self._text, self._at)
        rest = self._text[self._at if space is None else space.end() :]
        return self.is_whole and (not rest or any(text.startswith(rest) for text in texts))

    def skip_rest(self) -> str:
        """Read all available text."""
        return self.skip(len(self._text) - self._at)

    def is_cut_soon(self) -> bool:
        """Whether the text ends here; only after `short_until` has found no marker."""
        return self.is_whole and len(self._text) - self._at <= MAX_SHORT

    def short_until(self, texts: tuple[str, ...]) -> Reading[str | None]:
        """Read text up to a marker that comes soon, but not the marker; None if none does.

        Then nothing is read. Soon is after at most MAX_SHORT characters.
        """
        wanted = markers(texts)
        while True:
            place, marker = wanted.find(self._text, self._at)
            if place - self._at > MAX_SHORT:
                return None
            if marker:
                return self.skip(place - self._at)
            if self.is_whole:
                return None
            yield

    def _emit_to(self, place: int, emit: Emit) -> None:
        if place > self._at:
            emit(self._text[self._at : place])
            self._at = place


def _num_trailing_spaces(text: str, start: int, stop: int) -> int:
    tail = text[max(start, stop - MAX_SPACE) : stop]
    return len(tail) - len(tail.rstrip())
