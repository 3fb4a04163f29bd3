"""Format log-probabilities for the endpoints."""

from collections.abc import Iterable, Sequence

from jaxserve.api.request import PositionLogprobs
from jaxserve.api.request import TokenLogprob as Scored
from jaxserve.server.schema.answers import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprobs,
    RankedLogprob,
    TokenLogprob,
    TopLogprob,
)
from jaxserve.tokenization.tokenizer import Tokenizer

# In place of minus infinity, which JSON cannot represent; as in OpenAI's API and vLLM.
LEAST_LOGPROB = -9999.0


class LogprobWriter:
    """Formats tokens and their log-probabilities.

    as_ids: write tokens as `token_id:N`, an option of vLLM. by_id: the alternatives are those of
    logprob_token_ids; as in vLLM, the sampled token is then listed first.
    """

    def __init__(self, tokenizer: Tokenizer, *, as_ids: bool, by_id: bool = False) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids
        self._by_id = by_id

    def chat(self, positions: Iterable[PositionLogprobs]) -> ChatLogprobs:
        """Return the log-probabilities of a message's tokens."""
        return ChatLogprobs(
            [
                TokenLogprob(
                    *self._columns(position.chosen),
                    top_logprobs=[
                        TopLogprob(*self._columns(each))
                        for each in (_distinct(position) if self._by_id else position.top)
                    ],
                )
                for position in positions
            ]
        )

    def completion(
        self,
        positions: Iterable[PositionLogprobs | None],
        token_ids: Sequence[int],
        offsets: list[int],
    ) -> CompletionLogprobs:
        """Return the log-probabilities of the tokens of a text.

        positions: one per token; None if unknown, as for a prompt's first token. offsets: positions
        of the tokens in the text, in characters.
        """
        columns = CompletionLogprobs(offsets, [], [], [])
        for token_id, position in zip(token_ids, positions, strict=True):
            token = self._key(token_id)
            columns.tokens.append(token)
            if position is None:
                columns.token_logprobs.append(None)
                columns.top_logprobs.append(None)
            else:
                columns.token_logprobs.append(_finite(position.chosen.logprob))
                columns.top_logprobs.append(self._by_text(position))
        return columns

    def prompt(self, positions: Iterable[PositionLogprobs]) -> PromptLogprobs:
        """Return vLLM's list for a prompt, with None for its first token."""
        rows: PromptLogprobs = [None]
        for position in positions:
            rows.append(
                {
                    str(scored.token_id): RankedLogprob(
                        _finite(scored.logprob),
                        scored.rank,
                        self._tokenizer.token_text(scored.token_id),
                    )
                    for scored in (position.chosen, *position.top)
                }
            )
        return rows

    def _by_text(self, position: PositionLogprobs) -> dict[str, float]:
        """Return the alternatives by text. The second of two equal texts is replaced by its id.

        The chosen token comes first, so that it can be looked up by its text.
        """
        found: dict[str, float] = {}
        for scored in _distinct(position):
            key = self._key(scored.token_id)
            found[f"token_id:{scored.token_id}" if key in found else key] = _finite(scored.logprob)
        return found

    def _columns(self, scored: Scored) -> tuple[str, float, list[int]]:
        data = self._tokenizer.token_bytes(scored.token_id)
        token = f"token_id:{scored.token_id}" if self._as_ids else data.decode(errors="replace")
        return token, _finite(scored.logprob), list(data)

    def _key(self, token_id: int) -> str:
        """Return the text of a token, or `bytes:...` if it is not valid UTF-8, as in OpenAI's API.

        Tokens are keys here; with U+FFFD, different parts of characters would collide.
        """
        if self._as_ids:
            return f"token_id:{token_id}"
        data = self._tokenizer.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class TextOffsets:
    """Incremental computation of token offsets in the text, in characters."""

    def __init__(self, tokenizer: Tokenizer, *, skips_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skips_special = skips_special
        self._offset = 0

    def of_prompt(self, token_ids: Iterable[int], text: str) -> list[int]:
        """Return the offsets of a prompt's tokens in its text.

        The tokenizer may have added special tokens, and a space before the text.
        """
        offsets = []
        for token_id in token_ids:
            offsets.append(self._offset)
            token = self._tokenizer.token_text(token_id)
            if token_id in self._tokenizer.special_ids and not text.startswith(token, self._offset):
                continue
            is_spaced = self._offset == 0 and token.startswith(" ") and not text.startswith(" ")
            self._offset += self._num_chars(token_id) - is_spaced
        self._offset = len(text)
        return offsets

    def of_answer(self, token_ids: Iterable[int]) -> list[int]:
        """Return the offsets of the next tokens."""
        offsets = []
        for token_id in token_ids:
            offsets.append(self._offset)
            if not (self._skips_special and token_id in self._tokenizer.special_ids):
                self._offset += self._num_chars(token_id)
        return offsets

    def _num_chars(self, token_id: int) -> int:
        """Return the number of characters that begin in a token."""
        return sum(byte & 0xC0 != 0x80 for byte in self._tokenizer.token_bytes(token_id))


def _distinct(position: PositionLogprobs) -> list[Scored]:
    """Return the chosen token and the alternatives, each token once."""
    found: dict[int, Scored] = {}
    for scored in (position.chosen, *position.top):
        found.setdefault(scored.token_id, scored)
    return list(found.values())


def _finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
