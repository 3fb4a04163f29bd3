"""A model's vocabulary in the form that llguidance needs."""

import re
import threading
from collections.abc import Callable, Sequence
from functools import cached_property

from llguidance import LLTokenizer, TokenizerWrapper
from tokenizers import Tokenizer

# Other added tokens, such as line breaks, are ordinary text in the format of a call.
MARKUP = re.compile(r"<.+>|\[.+\]")


class Vocabulary:
    """The tokens of a model, for compiling grammars. Thread-safe.

    load: returns the tokenizer; called on first use. vocab_size: width of the model's logits,
    which may exceed the size of the tokenizer's vocabulary. eos_ids: tokens that end an answer,
    allowed where the grammar is complete.
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
        # llguidance needs room for every token of the tokenizer.
        return max(self._vocab_size, self._tokenizer.get_vocab_size())

    @property
    def num_words(self) -> int:
        """Number of int32 words in a bitmask with one bit per token."""
        return (self._num_tokens + 31) // 32

    def whole(self) -> LLTokenizer:
        """Return the whole vocabulary. The first call holds the GIL for a second or two."""
        with self._lock:
            if self._whole is None:
                self._whole = LLTokenizer(
                    self._tokenizer.to_str(),
                    n_vocab=self._num_tokens,
                    eos_token=self._eos_ids or None,
                )
            return self._whole

    def bare(self) -> LLTokenizer:
        """Return a vocabulary of bytes and added tokens: enough to check a grammar quickly."""
        return self._bare

    @cached_property
    def _bare(self) -> LLTokenizer:
        return LLTokenizer(TokenizerWrapper(_Bytes(self.added_texts)))

    @property
    def added_texts(self) -> list[str]:
        """Texts of the added tokens, in the order of `bare`."""
        return [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]

    def markup(self, *, is_bare: bool) -> dict[str, int]:
        """Return the ids of the added tokens that look like markup, by text.

        is_bare: whether the ids are those of `bare`. llguidance never matches text against these
        tokens, so grammars must name them by id.
        """
        added = self._tokenizer.get_added_tokens_decoder()
        ids = _Bytes.special_ids(len(added)) if is_bare else added
        named = zip(ids, (token.content for token in added.values()), strict=True)
        return {text: token_id for token_id, text in named if MARKUP.fullmatch(text)}


class _Bytes:
    """A tokenizer of single bytes, with the interface that `TokenizerWrapper` expects."""

    bos_token_id = None

    def __init__(self, special_tokens: Sequence[str]) -> None:
        # \xff is not valid UTF-8, so no grammar can name this token.
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
