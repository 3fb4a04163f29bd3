"""Count the reasoning tokens of an answer."""

from collections.abc import Iterable, Sequence

type Ids = tuple[int, ...]


class ReasoningTokens:
    """Counter of tokens between the markers of reasoning, which are sequences of token ids.

    is_open: whether the answer begins inside reasoning. repeats: whether reasoning may occur
    several times; otherwise it can only begin the answer.
    """

    def __init__(
        self,
        begins: Iterable[Sequence[int]],
        ends: Iterable[Sequence[int]],
        *,
        is_open: bool,
        repeats: bool = False,
    ) -> None:
        self._begins = tuple(tuple(ids) for ids in begins if ids)
        self._ends = tuple(tuple(ids) for ids in ends if ids)
        self._max_marker = max(map(len, self._begins + self._ends), default=1)
        self._repeats = repeats
        self._is_open = is_open
        self._may_begin = True
        self._num_seen = 0
        self._last: tuple[int, ...] = ()
        self.count = 0

    def add(self, token_ids: Iterable[int]) -> None:
        """Count the next tokens of the answer."""
        for token_id in token_ids:
            self._num_seen += 1
            self._last = (*self._last, token_id)[-self._max_marker :]
            if self._is_open:
                end = self._found(self._ends)
                # The earlier tokens of the marker have been counted; subtract them.
                self.count += 1 - len(end)
                self._is_open, self._may_begin = not end, self._repeats
            elif self._may_begin:
                self._is_open = bool(self._found(self._begins))
                # After white space at most.
                self._may_begin = self._repeats or self._num_seen <= self._max_marker

    def _found(self, markers: tuple[Ids, ...]) -> Ids:
        """Return the marker at the end of the answer; empty if there is none."""
        return next((ids for ids in markers if self._last[-len(ids) :] == ids), ())
