"""A model's tokens as llguidance sees them."""

import re
import threading
from collections.abc import Callable, Sequence
from functools import cached_property

from llguidance import LLTokenizer, TokenizerWrapper
from tokenizers import Tokenizer

# Other added tokens, such as line breaks, are text like any other where a form of calls has them.
MARKUP = re.compile(r"<.+>|\[.+\]")


class Vocabulary:
    """The tokens that a grammar allows or forbids; for any thread.

    load: returns the tokenizer; called when it is first needed.
    vocab_size: width of the model's logits, which may be more than the tokenizer knows. eos_ids:
    the tokens that end an answer, allowed where a grammar lets it end.
    """

    def __init__(
        self,
        load: Callable[[], Tokenizer],
        *,
        vocab_size: int,
        eos_ids: Sequence[int] = (),
    ) -> None:
        self._load = load
        self._vocab_size = vocab_size
        self._eos_ids = list(eos_ids)
        self._lock = threading.RLock()
        self._whole: LLTokenizer | None = None

    @property
    def _tokenizer(self) -> Tokenizer:
        with self._lock:
            return self._loaded

    @cached_property
    def _loaded(self) -> Tokenizer:
        return self._load()

    @property
    def _num_tokens(self) -> int:
        # llguidance will not leave out a token that the tokenizer knows.
        return max(self._vocab_size, self._tokenizer.get_vocab_size())

    @property
    def num_words(self) -> int:
        """How many int32 hold a bit for each token."""
        return (self._num_tokens + 31) // 32

    def whole(self) -> LLTokenizer:
        """Return all tokens. The first call takes a second or two, and keeps the GIL."""
        with self._lock:
            if self._whole is None:
                self._whole = LLTokenizer(
                    self._tokenizer.to_str(),
                    n_vocab=self._num_tokens,
                    eos_token=self._eos_ids or None,
                )
            return self._whole

    def bare(self) -> LLTokenizer:
        """Return bytes and added tokens alone: enough to check a grammar by, in no time."""
        return self._bare

    @cached_property
    def _bare(self) -> LLTokenizer:
        return LLTokenizer(TokenizerWrapper(_Bytes(self.added_texts)))

    @property
    def added_texts(self) -> list[str]:
        """The texts of the added tokens, in the order of `bare`."""
        return [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]

    def markup(self, *, is_bare: bool) -> dict[str, int]:
        """Return the added tokens that look like markup and their ids, in all tokens or `bare`.

        To llguidance no text is ever one of them, special or not.
        """
        added = self._tokenizer.get_added_tokens_decoder()
        ids = _Bytes.special_ids(len(added)) if is_bare else added
        named = zip(ids, (token.content for token in added.values()), strict=True)
        return {text: token_id for token_id, text in named if MARKUP.fullmatch(text)}


class _Bytes:
    """A tokenizer of single bytes, as `TokenizerWrapper` wants one."""

    bos_token_id = None

    def __init__(self, special_tokens: Sequence[str]) -> None:
        # Of no name that a grammar can call.
        names = [b"\xff<end>", *(name.encode() for name in special_tokens)]
        self.tokens = [bytes([byte]) for byte in range(256)] + names
        self.eos_token_id = 256
        self.special_token_ids = list(range(256, len(self.tokens)))

    @staticmethod
    def special_ids(num_tokens: int) -> range:
        """Return the ids of the special tokens."""
        return range(257, 257 + num_tokens)

    def __call__(self, text: bytes) -> list[int]:
        return [*text]
