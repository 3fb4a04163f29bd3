"""Incremental detokenization, and detection of stop strings."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from jaxserve.api.request import Request

REPLACEMENT = "\ufffd"
# A character is at most four bytes, so at most four tokens. Without a limit, bytes that never form
# a character would be decoded again with each token, at quadratic cost.
MAX_PENDING_TOKENS = 8
# Lengths of the prompt's tail to decode as context, tried in this order. A longer tail is needed
# only if a shorter one begins in the middle of a character.
CONTEXT_TOKENS = (4, 8, 16, 32)
# Tokens at the end of a prompt that can be the beginning of a character.
MAX_SPLIT_TOKENS = 3


class TokenDecoder:
    """Incremental decoder of tokens. Text is final once returned.

    The concatenated text equals the decoded prompt and output, minus the decoded prompt. It differs
    from decoding the output alone in the leading space that sentencepiece tokenizers drop. Invalid
    bytes decode to U+FFFD.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, prompt_ids: Sequence[int], skip_special_tokens: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        # context: tokens whose text has been returned, decoded again because they affect spacing.
        # pending: later tokens whose text has not been returned.
        self._context, split = self._find_context(prompt_ids)
        self._pending: list[int] = []
        self._stream = self._new_stream()
        for token_id in split:
            self._step(token_id)
        # The text of the prompt's incomplete end by itself. If the answer does not complete the
        # character, this text is removed from the answer.
        self._prompt_text = self._decode(split)

    def push(self, token_id: int) -> str:
        """Add a token, and return the text that is now complete."""
        text = self._step(token_id)
        return self._without_prompt(text) if self._prompt_text else text

    def flush(self) -> str:
        """Return the text of all pending tokens, without a trailing incomplete character.

        As in vLLM, an incomplete character has no text, so a request that continues from here gets
        the whole character.
        """
        ends_whole = self._ends_with_replacement()
        text = self._restart()
        text = self._without_prompt(text) if self._prompt_text else text
        return text if ends_whole else text.rstrip(REPLACEMENT)

    def _ends_with_replacement(self) -> bool:
        """Whether the pending tokens end with the encoding of U+FFFD itself."""
        if not self._pending:
            return False
        before, both = (
            self._tokenizer.encode(text, add_special_tokens=False).ids
            for text in ("a", f"a{REPLACEMENT}")
        )
        spelled = both[len(before) :]
        return bool(spelled) and self._pending[-len(spelled) :] == spelled

    def _step(self, token_id: int) -> str:
        self._pending.append(token_id)
        try:
            text: str | None = self._stream.step(self._tokenizer, token_id)
        except Exception as error:
            # The library has no exception class for this error: the new token changed the decoding
            # of earlier text, as an invalid byte does to the bytes before it.
            if "Invalid prefix" not in str(error):
                raise
            return self._restart()
        if text is not None:
            self._context, self._pending = self._pending, []
            return text
        return self._restart() if len(self._pending) >= MAX_PENDING_TOKENS else ""

    def _restart(self) -> str:
        """Return the text of all pending tokens, and begin a new stream after them."""
        if not self._pending:
            return ""
        before = self._decode(self._context)
        text = self._decode(self._context + self._pending)
        is_extended = text.startswith(before)
        text = text[len(before) :] if is_extended else self._decode(self._pending)
        # Keep the context, because it decodes to whole characters and these tokens may not.
        self._pending = []
        self._stream = self._new_stream()
        return text

    def _new_stream(self) -> DecodeStream:
        return DecodeStream(ids=self._context, skip_special_tokens=self._skip_special_tokens)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)

    def _without_prompt(self, text: str) -> str:
        if text:
            text = text.removeprefix(self._prompt_text)
            self._prompt_text = ""
        return text

    def _find_context(self, prompt_ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return a tail of the prompt that decodes to whole characters, and the tokens after it."""
        for num_split in range(min(MAX_SPLIT_TOKENS, len(prompt_ids)) + 1):
            stop = len(prompt_ids) - num_split
            for num_context in CONTEXT_TOKENS:
                start = max(0, stop - num_context)
                context = list(prompt_ids[start:stop])
                text = self._decode(context)
                if text.strip(REPLACEMENT) == text and (text or start == 0):
                    return context, list(prompt_ids[stop:])
                if start == 0:
                    break
        return [], []


class StopStrings:
    """Incremental search for stop strings; the result does not depend on the pieces.

    The match that ends first wins, and the longest of those that end together. Uses the algorithm
    of Knuth, Morris and Pratt (1977), so the cost is linear even for adversarial texts.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        # Longest first, so that the first match at a character is the longest that ends there.
        self._stops = sorted(stops, key=len, reverse=True)
        self._borders = [_borders(stop) for stop in self._stops]
        self._first_chars = frozenset(stop[0] for stop in stops)
        # Number of leading characters of each stop string that the text ends with.
        self._matched = [0] * len(stops)
        # Text that may be the beginning of a stop string.
        self._buffer = ""

    def push(self, text: str, *, may_stop: bool) -> tuple[str, str | None]:
        """Add text; return the text that is final, and the stop string found, if any.

        Text that may begin a stop string is buffered. If a stop string is found, the returned text
        ends with it. may_stop: whether to accept stop strings that end in this text.
        """
        if not self._buffer and self._first_chars.isdisjoint(text):
            return text, None
        text = self._buffer + text
        for position in range(len(self._buffer), len(text)):
            for index, stop in enumerate(self._stops):
                matched = self._advance(index, text[position])
                if matched == len(stop):
                    if may_stop:
                        self._buffer = ""
                        return text[: position + 1], stop
                    matched = self._borders[index][-1]
                self._matched[index] = matched
        num_free = len(text) - max(self._matched)
        self._buffer = text[num_free:]
        return text[:num_free], None

    def flush(self) -> str:
        """Return the buffered text."""
        text, self._buffer = self._buffer, ""
        return text

    def _advance(self, index: int, char: str) -> int:
        """Return the number of matched characters of a stop string after one more character."""
        stop, borders = self._stops[index], self._borders[index]
        matched = self._matched[index]
        while matched and stop[matched] != char:
            matched = borders[matched - 1]
        return matched + 1 if stop[matched] == char else 0


def _borders(stop: str) -> list[int]:
    """For each prefix of `stop`, the length of its longest proper prefix that is its suffix."""
    borders = [0]
    for char in stop[1:]:
        border = borders[-1]
        while border and stop[border] != char:
            border = borders[border - 1]
        borders.append(border + 1 if stop[border] == char else 0)
    return borders


class Detokenizer:
    """Detokenizer of one choice of a request.

    The text ends before the stop string, or with it if the request includes it. stop_string: the
    stop string that was found.
    """

    def __init__(self, tokenizer: Tokenizer, request: Request) -> None:
        params = request.params
        self._decoder = TokenDecoder(
            tokenizer,
            prompt_ids=request.prompt_ids,
            skip_special_tokens=params.skip_special_tokens,
        )
        self._stops = StopStrings(params.stop) if params.stop else None
        self._includes_stop = params.include_stop_str_in_output
        self._min_tokens = params.min_tokens
        self._num_tokens = 0
        self.stop_string: str | None = None

    def push(self, token_id: int) -> str:
        """Add a token, and return the text that is final."""
        self._num_tokens += 1
        return self._pass_on(self._decoder.push(token_id))

    def finish(self) -> str:
        """Return the rest of the text; empty after a stop string."""
        if self.stop_string is not None:
            return ""
        text = self._pass_on(self._decoder.flush())
        if self._stops is not None and self.stop_string is None:
            text += self._stops.flush()
        return text

    def _pass_on(self, text: str) -> str:
        if self._stops is None:
            return text
        # As in vLLM, a stop string counts if it ends in a token after the first min_tokens.
        may_stop = self._num_tokens > self._min_tokens
        text, stop = self._stops.push(text, may_stop=may_stop)
        if stop is not None:
            self.stop_string = stop
            if not self._includes_stop:
                text = text[: len(text) - len(stop)]
        return text
