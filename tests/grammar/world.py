"""Grammars over a tiny byte-level vocabulary."""

import random
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from jaxserve.api.structured_outputs import StructuredOutputsParams
from jaxserve.grammar import GrammarChecker, GrammarCompiler, Vocabulary
from jaxserve.tokenization.tokenizer import Tokenizer
from tests.server.world import VOCAB_SIZE, tokenizer, write_tokenizer


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary(
        lambda: tokenizer().backend, vocab_size=VOCAB_SIZE, eos_ids=tokenizer().eos_ids
    )


@cache
def compiler() -> GrammarCompiler:
    return GrammarCompiler(vocabulary())


@cache
def checker() -> GrammarChecker:
    return GrammarChecker(vocabulary())


def accepts(params: StructuredOutputsParams, text: str) -> bool:
    """Whether a text, whole, is an answer that the grammar allows."""
    matcher = compiler().matcher(params)
    token_ids = list(tokenizer().encode(text, add_special_tokens=False))
    return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()


class Model:
    """Texts that a model with few tokens may write, those of `markup` among them."""

    def __init__(self, markup: Iterable[str] = ()) -> None:
        with TemporaryDirectory() as folder:
            self._tokenizer = Tokenizer.load(write_tokenizer(Path(folder)))
        self._tokenizer.backend.add_special_tokens(sorted(markup))
        # In harmony, this token ends an answer; the others end a message.
        end = self._tokenizer.backend.token_to_id("<|return|>")
        eos_ids = self._tokenizer.eos_ids if end is None else (end,)
        vocabulary = Vocabulary(
            lambda: self._tokenizer.backend, vocab_size=VOCAB_SIZE, eos_ids=eos_ids
        )
        self._end = eos_ids[0]
        self._compiler = GrammarCompiler(vocabulary)
        self.checker = GrammarChecker(vocabulary)

    def accepts(self, params: StructuredOutputsParams, text: str) -> bool:
        """Whether a text, whole, is an answer that the grammar allows."""
        matcher = self._compiler.matcher(params)
        token_ids = self._ids(text)
        return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()

    def accepts_some(self, params: StructuredOutputsParams, text: str) -> bool:
        """Whether an answer that the grammar allows begins the text."""
        matcher = self._compiler.matcher(params)
        token_ids = iter(self._ids(text))
        while not matcher.is_accepting():
            token_id = next(token_ids, None)
            if token_id is None or not matcher.try_consume_tokens([token_id]):
                return False
        return True

    def writes(
        self,
        params: StructuredOutputsParams,
        chance: random.Random,
        *,
        hints: Sequence[str] = (),
        max_tokens: int = 600,
    ) -> str | None:
        """Return an answer drawn at random from what the grammar allows; None if it gets too long.

        hints: what is tried now and then, as the end of a text is seldom drawn.
        """
        matcher = self._compiler.matcher(params)
        token_ids: list[int] = []
        while not matcher.is_stopped() and len(token_ids) < max_tokens:
            bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
            allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist()
            assert not matcher.is_error(), matcher.get_error()
            if allowed == [self._end] or (self._end in allowed and chance.random() < 0.5):
                break
            drawn = [chance.choice([token for token in allowed if token != self._end])]
            if hints and chance.random() < 0.4:
                hinted = self._ids(chance.choice(hints))
                drawn = hinted if matcher.validate_tokens(hinted) == len(hinted) else drawn
            assert matcher.consume_tokens(drawn)
            token_ids += drawn
        assert not matcher.is_error(), matcher.get_error()
        is_whole = len(token_ids) < max_tokens
        return self._tokenizer.decode(token_ids) if is_whole else None

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))
