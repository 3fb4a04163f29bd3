"""Tokens to text, one token at a time, and the stop strings found in that text."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from jaxserve.api.request import Request

REPLACEMENT = "\ufffd"
# A character is at most four bytes, so at most four tokens. A model that emits bytes which never
# form one would otherwise be decoded again from its start with each token, at quadratic cost.
MAX_PENDING_TOKENS = 8
# How much of the prompt to decode for context, tried in this order. More is needed only when the
# shorter tail begins in the middle of a character.
CONTEXT_TOKENS = (4, 8, 16, 32)
# Tokens at the end of a prompt that can be the beginning of a character.
MAX_SPLIT_TOKENS = 3


class TokenDecoder:
    """Decodes a growing list of tokens into text that is final as soon as it is given out.

    The pieces together are what decoding prompt and output at once adds to decoding the prompt
    alone: that differs from decoding the output alone by the leading space which sentencepiece
    tokenizers drop. Bytes that are no character come out as U+FFFD.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, prompt_ids: Sequence[int], skip_special_tokens: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        # context: tokens whose text is out already, decoded along for the sake of spacing.
        # pending: tokens after them whose text is not out.
        self._context, split = self._find_context(prompt_ids)
        self._pending: list[int] = []
        self._stream = self._new_stream()
        for token_id in split:
            self._step(token_id)
        # What the end of the prompt is worth by itself. If it comes out so, and not as part of a
        # character that the answer completes, it is none of the answer's.
        self._prompt_text = self._decode(split)

    def push(self, token_id: int) -> str:
        """Add a token and return the text that is now complete, often that of this token."""
        text = self._step(token_id)
        return self._without_prompt(text) if self._prompt_text else text

    def flush(self) -> str:
        """Return the text of all tokens that are pending, up to a character that is not complete.

        As in vLLM it has no text: whoever goes on from here, by text or by tokens, gets it whole.
        """
        ends_whole = self._ends_with_replacement()
        text = self._restart()
        text = self._without_prompt(text) if self._prompt_text else text
        return text if ends_whole else text.rstrip(REPLACEMENT)

    def _ends_with_replacement(self) -> bool:
        """Whether the last tokens that are pending spell U+FFFD itself."""
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
            # The library has no class of its own for this: the new token changed the decoding of
            # text that was final, as an invalid byte does to the bytes before it.
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
        # The context stays: it decodes to whole characters, which these tokens may not.
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
        """Return a tail of the prompt that decodes to whole characters, and what follows it."""
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
    """Finds stop strings in text that comes in pieces, whatever the pieces.

    Of several matches the one that ends first counts, and of those the longest. Every character
    is looked at once per stop string (Knuth, Morris and Pratt 1977), so the cost is linear even
    for texts made to be slow.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        # Longest first: the first to match at a character is the longest to end there.
        self._stops = sorted(stops, key=len, reverse=True)
        self._borders = [_borders(stop) for stop in self._stops]
        self._first_chars = frozenset(stop[0] for stop in stops)
        # How many characters of each stop string the text ends with.
        self._matched = [0] * len(stops)
        self._held = ""

    def push(self, text: str, *, may_stop: bool) -> tuple[str, str | None]:
        """Add text; return what can be given out, and the stop string that is complete, if any.

        Text from the start of a possible stop string on is held. When one is complete, the text
        returned ends with it. Without `may_stop`, complete ones are passed over.
        """
        if not self._held and self._first_chars.isdisjoint(text):
            return text, None
        text = self._held + text
        for position in range(len(self._held), len(text)):
            for index, stop in enumerate(self._stops):
                matched = self._advance(index, text[position])
                if matched == len(stop):
                    if may_stop:
                        self._held = ""
                        return text[: position + 1], stop
                    matched = self._borders[index][-1]
                self._matched[index] = matched
        num_free = len(text) - max(self._matched)
        self._held = text[num_free:]
        return text[:num_free], None

    def flush(self) -> str:
        """Return the text that is held."""
        text, self._held = self._held, ""
        return text

    def _advance(self, index: int, char: str) -> int:
        """Return how much of a stop string the text ends with after one more character."""
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
    """The text of one choice of a request.

    Pushed tokens come back as text from which the stop string is cut off, unless the request
    asks to include it; `stop_string` is the one that was found.
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
        """Add a token; return the text that can be given out."""
        self._num_tokens += 1
        return self._pass_on(self._decoder.push(token_id))

    def finish(self) -> str:
        """Return the rest of the text; after a stop string there is none."""
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
