"""Compiled grammars: checked, bounded in time and memory, and kept for the next request."""

import re
import threading
from collections import OrderedDict
from functools import cached_property

from llguidance import LLMatcher, LLParserLimits

from jaxserve.grammar.source import grammar_source, unspelled
from jaxserve.grammar.vocabulary import Vocabulary
from jaxserve.structured_outputs import StructuredOutputsParams, refusal

# What llguidance may spend: on compiling, a tenth of a second of lexing; on one mask, 3 ms of
# lexing and as much of parsing; on the states of one lexer, 1 or 2 kB each.
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=50_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
# Compiled at once: the largest take half a second each.
MAX_COMPILING = 2
CACHE_BYTES = 2**26
# What a compiled grammar takes, measured over schemas of 1 to 300 properties: so much, and so much
# for each byte of its source.
BYTES_PER_GRAMMAR = 2**17
BYTES_PER_SOURCE_BYTE = 16
MAX_REASON_CHARS = 200

# What is asked for, and whether text that must come is spelled in one way.
type _Key = tuple[StructuredOutputsParams, bool]

# What llguidance says of a schema, and what it means to who wrote it.
_REASONS = (
    (re.compile(r"Unimplemented keys: \[(.*)\]"), "uses keywords that are not supported: {}"),
    (re.compile(r"Unknown format: (.*)"), "uses a format that is not supported: {}"),
    (re.compile(r"Resource '(.*?)' is not present"), "refers outside of itself, by $ref to {}"),
    (re.compile(r"(oneOf) constraints are not"), "uses {} of choices that do not exclude another"),
    (re.compile(r"Unsatisfiable schema: (.*)"), "can be met by nothing: {}"),
    (re.compile(r"NoExtensionBias()"), "can be met by nothing"),
)


class GrammarCompiler:
    """Makes matchers of what requests ask for; for any thread. It must not be an event loop's.

    Grammars are kept, the latest used of them, up to `cache_bytes`. is_bare: whether of the tokens
    only bytes and added ones are needed, as for a check.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        is_bare: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._vocabulary = vocabulary
        self._tokens = vocabulary.bare if is_bare else vocabulary.whole
        self._is_bare = is_bare
        self._cache_bytes = cache_bytes
        self._room = threading.Semaphore(MAX_COMPILING)
        self._lock = threading.Lock()
        self._compiled: OrderedDict[_Key, tuple[LLMatcher, int]] = OrderedDict()
        self._num_bytes = 0

    @cached_property
    def _markup(self) -> dict[str, int]:
        return self._vocabulary.markup(is_bare=self._is_bare)

    @property
    def num_words(self) -> int:
        """How many int32 hold a mask."""
        return self._vocabulary.num_words

    @property
    def num_kept(self) -> int:
        """Grammars that need not be compiled again."""
        return len(self._compiled)

    def matcher(self, params: StructuredOutputsParams, *, spells: bool = True) -> LLMatcher:
        """Return a matcher at the beginning of an answer, the caller's own.

        spells: text that must come is spelled in one way, as the tokenizer does, and may be forced.
        Raises InvalidRequestError for what cannot be followed, naming the keyword at fault.
        """
        key = params, spells
        with self._lock:
            if key in self._compiled:
                self._compiled.move_to_end(key)
                return self._compiled[key][0].deep_copy()
        with self._room:
            source = grammar_source(params, markup=self._markup)
            if not spells:
                source = unspelled(source)
            matcher = LLMatcher(self._tokens(), source, limits=LIMITS, log_level=0)
            if not matcher.is_error():
                # Some grammars show only here that they have no end, or that they take for ever.
                matcher.compute_bitmask()
        if matcher.is_error():
            raise refusal(params.kind, _reason(matcher.get_error()))
        self._keep(key, matcher, len(source))
        return matcher.deep_copy()

    def _keep(self, key: _Key, matcher: LLMatcher, num_chars: int) -> None:
        num_bytes = BYTES_PER_GRAMMAR + BYTES_PER_SOURCE_BYTE * num_chars
        with self._lock:
            if key in self._compiled or num_bytes > self._cache_bytes:
                return
            self._compiled[key] = matcher, num_bytes
            self._num_bytes += num_bytes
            while self._num_bytes > self._cache_bytes:
                self._num_bytes -= self._compiled.popitem(last=False)[1][1]


class GrammarChecker:
    """Refuses what no answer can follow, where requests come in: it needs no whole vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._compiler = GrammarCompiler(vocabulary, is_bare=True)

    def check(self, params: StructuredOutputsParams) -> None:
        """Raise InvalidRequestError, naming the keyword at fault. May take half a second."""
        self._compiler.matcher(params)


def _reason(message: str) -> str:
    """Say in our words what llguidance says of a grammar; it speaks of nothing else."""
    for pattern, words in _REASONS:
        found = pattern.search(message)
        if found is not None:
            return words.format(found[1].replace('"', "")[:MAX_REASON_CHARS]).rstrip(": ")
    words = " ".join(message.partition("<non-verbose/>")[0].split())
    return f"cannot be followed: {words[:MAX_REASON_CHARS]}"
