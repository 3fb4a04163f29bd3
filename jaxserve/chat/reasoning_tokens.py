"""How many tokens of an answer are reasoning."""

from collections.abc import Iterable, Sequence

type Ids = tuple[int, ...]


class ReasoningTokens:
    """Counts the tokens between what begins and what ends reasoning, as token ids.

    is_open: whether the answer begins within. repeats: whether reasoning may begin again; else it
    stands at the beginning of an answer or nowhere.
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
                # The tokens of the marker before its last one were counted as they came.
                self.count += 1 - len(end)
                self._is_open, self._may_begin = not end, self._repeats
            elif self._may_begin:
                self._is_open = bool(self._found(self._begins))
                # After white space at most.
                self._may_begin = self._repeats or self._num_seen <= self._max_marker

    def _found(self, markers: tuple[Ids, ...]) -> Ids:
        """Return the marker that the answer ends with; empty if with none."""
        return next((ids for ids in markers if self._last[-len(ids) :] == ids), ())
