"""Log-probabilities in the forms that the endpoints give them."""

from collections.abc import Iterable, Sequence

from jaxserve.loading.tokenizer import Tokenizer
from jaxserve.request import PositionLogprobs
from jaxserve.request import TokenLogprob as Scored
from jaxserve.server.protocol.answers import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprobs,
    RankedLogprob,
    TokenLogprob,
    TopLogprob,
)

# What OpenAI and vLLM write for minus infinity, which JSON has no word for.
LEAST_LOGPROB = -9999.0


class LogprobWriter:
    """Writes tokens and their log-probabilities; as_ids: tokens as `token_id:N`, vLLM's option."""

    def __init__(self, tokenizer: Tokenizer, *, as_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def chat(self, positions: Iterable[PositionLogprobs]) -> ChatLogprobs:
        """Return the log-probabilities of a message's tokens."""
        return ChatLogprobs(
            [
                TokenLogprob(
                    *self._columns(position.chosen),
                    top_logprobs=[TopLogprob(*self._columns(other)) for other in position.top],
                )
                for position in positions
            ]
        )

    def completion(
        self,
        positions: Iterable[PositionLogprobs | None],
        token_ids: Sequence[int],
        *,
        offset: int = 0,
    ) -> CompletionLogprobs:
        """Return the log-probabilities of a text's tokens, whose first begins at `offset`.

        positions align with token_ids; None where nothing is known, as of a prompt's first token.
        """
        columns = CompletionLogprobs([], [], [], [])
        for token_id, position in zip(token_ids, positions, strict=True):
            token = self._key(token_id)
            columns.text_offset.append(offset)
            columns.tokens.append(token)
            if position is None:
                columns.token_logprobs.append(None)
                columns.top_logprobs.append(None)
            else:
                columns.token_logprobs.append(_finite(position.chosen.logprob))
                columns.top_logprobs.append(
                    {
                        self._key(scored.token_id): _finite(scored.logprob)
                        for scored in (*position.top, position.chosen)
                    }
                )
            offset += len(self._tokenizer.token_text(token_id))
        return columns

    def prompt(self, positions: Iterable[PositionLogprobs]) -> PromptLogprobs:
        """Return vLLM's list for a prompt, whose first token has nothing to be likely after."""
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

    def _columns(self, scored: Scored) -> tuple[str, float, list[int]]:
        data = self._tokenizer.token_bytes(scored.token_id)
        token = f"token_id:{scored.token_id}" if self._as_ids else data.decode(errors="replace")
        return token, _finite(scored.logprob), list(data)

    def _key(self, token_id: int) -> str:
        """A token as text, and as `bytes:...` when it is none by itself, as OpenAI has it.

        Tokens are keys here: written as U+FFFD, different parts of characters would be one.
        """
        if self._as_ids:
            return f"token_id:{token_id}"
        data = self._tokenizer.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
