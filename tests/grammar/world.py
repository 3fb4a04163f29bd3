"""Grammars over a tiny byte-level vocabulary."""

from functools import cache

from jaxserve.grammar import GrammarChecker, GrammarCompiler, Vocabulary
from jaxserve.structured_outputs import StructuredOutputsParams
from tests.server.world import VOCAB_SIZE, tokenizer


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary(tokenizer, vocab_size=VOCAB_SIZE, eos_ids=tokenizer().eos_ids)


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
