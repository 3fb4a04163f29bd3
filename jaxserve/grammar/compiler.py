"""Compiled grammars: checked, bounded in time and memory, and kept for the next request."""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from functools import cached_property
from hashlib import blake2b

import msgspec
from llguidance import LLMatcher, LLParserLimits

from jaxserve.api.structured_outputs import StructuredOutputsParams, refusal
from jaxserve.config.structured_outputs import StructuredOutputsConfig
from jaxserve.errors import InvalidRequestError
from jaxserve.grammar.heap import heap_bytes
from jaxserve.grammar.source import grammar_source, unspelled
from jaxserve.grammar.vocabulary import Vocabulary

# What llguidance may spend: on compiling, a tenth of a second of lexing; on one mask, 3 ms of
# lexing and as much of parsing; on the states of one lexer, 1 or 2 kB each.
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=50_000,
    # Of an object with MAX_OPTIONAL_PROPERTIES, four items each.
    max_items_in_row=10_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
# Compiled at once: the largest take half a second each.
MAX_COMPILING = 2
CACHE_BYTES = 2**26
# What a compiled grammar takes at least, measured over schemas of 1 to 300 properties: so much, and
# so much for each byte of its source. Where the C library tells, it is measured.
BYTES_PER_GRAMMAR = 2**17
BYTES_PER_SOURCE_BYTE = 16
# All matchers of a grammar share the states of its lexer, which grow with the tokens they follow: a
# string of bounded length is the worst that was measured. LIMITS bound them.
BYTES_PER_TOKEN = 2**14
MAX_LEXER_BYTES = 100 * 2**20
MAX_VERDICTS = 2**14
MAX_REASON_CHARS = 200
# Of address space; what is touched of it is returned when the grammar is compiled. The longest
# chain of references in a schema of MAX_BYTES takes less than half.
STACK_BYTES = 2**27
_stack_size = threading.Lock()

NO_DEFAULTS = StructuredOutputsConfig()

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


class CompiledGrammar:
    """A grammar that is compiled. num_tokens: that its matchers have followed."""

    __slots__ = ("_matcher", "_num_bytes", "num_tokens")

    def __init__(self, matcher: LLMatcher, num_bytes: int) -> None:
        self._matcher = matcher
        self._num_bytes = num_bytes
        self.num_tokens = 0

    @property
    def num_bytes(self) -> int:
        """What it holds by now, at most."""
        return self._num_bytes + min(self.num_tokens * BYTES_PER_TOKEN, MAX_LEXER_BYTES)

    def matcher(self) -> LLMatcher:
        """Return a matcher at the beginning of an answer, the caller's own."""
        return self._matcher.deep_copy()


class GrammarCompiler:
    """Makes matchers of what requests ask for; for any thread. It must not be an event loop's.

    Grammars are kept, the latest used of them, up to `cache_bytes`. defaults: what holds for
    requests that say nothing else. is_bare: whether only bytes and added tokens are needed, as for
    a check.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        defaults: StructuredOutputsConfig = NO_DEFAULTS,
        is_bare: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._vocabulary = vocabulary
        self._defaults = defaults
        self._tokens = vocabulary.bare if is_bare else vocabulary.whole
        self._is_bare = is_bare
        self._cache_bytes = cache_bytes
        self._room = threading.Semaphore(MAX_COMPILING)
        self._lock = threading.Lock()
        self._compiled: OrderedDict[_Key, CompiledGrammar] = OrderedDict()

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

    def is_kept(self, params: StructuredOutputsParams) -> bool:
        """Whether a grammar need not be compiled again."""
        return (params, True) in self._compiled

    def text_of(self, token_id: int) -> bytes:
        """Return the text of a token."""
        return self._tokens().decode_bytes([token_id])

    def compiled(self, params: StructuredOutputsParams, *, spells: bool = True) -> CompiledGrammar:
        """Return a grammar, compiled.

        spells: text that must come is spelled in one way, as the tokenizer does, and may be forced.
        Raises InvalidRequestError for what cannot be followed, naming the keyword at fault.
        """
        key = params, spells
        with self._lock:
            found = self._compiled.get(key)
            if found is not None:
                self._compiled.move_to_end(key)
                # It may have grown so much that it goes, to be compiled again next time.
                self._evict()
                return found
        with self._room:
            source = grammar_source(params, self._defaults, markup=self._markup)
            if not spells:
                source = unspelled(source)
            before = heap_bytes()
            matcher = _with_stack(lambda: self._compile(source))
        if matcher.is_error():
            if params.whitespace_pattern is not None:
                # Raises what is wrong with the pattern, if that is it.
                self._check_pattern("whitespace_pattern", params.whitespace_pattern)
            raise refusal(params.kind, _reason(matcher.get_error()))
        # Other threads allocate, too, so that this is no more than about right.
        grown = min(heap_bytes() - before, MAX_LEXER_BYTES)
        estimate = BYTES_PER_GRAMMAR + BYTES_PER_SOURCE_BYTE * len(source)
        grammar = CompiledGrammar(matcher, max(grown, estimate))
        with self._lock:
            self._compiled.setdefault(key, grammar)
            self._evict()
        return grammar

    def _check_pattern(self, name: str, pattern: str) -> None:
        """Raise InvalidRequestError if the regex of a field cannot be followed by itself."""
        try:
            self.compiled(StructuredOutputsParams(regex=pattern))
        except InvalidRequestError as error:
            raise refusal(name, error.message.partition(" ")[2]) from error

    def _compile(self, source: str) -> LLMatcher:
        matcher = LLMatcher(self._tokens(), source, limits=LIMITS, log_level=0)
        if not matcher.is_error():
            # Some grammars show only here that they have no end, or that they take for ever.
            matcher.compute_bitmask()
        return matcher

    def matcher(self, params: StructuredOutputsParams, *, spells: bool = True) -> LLMatcher:
        """Return a matcher at the beginning of an answer; see `compiled`."""
        return self.compiled(params, spells=spells).matcher()

    def renewed(
        self, params: StructuredOutputsParams, worn: CompiledGrammar, *, spells: bool = True
    ) -> CompiledGrammar:
        """Return a grammar in place of one whose lexer has no room for more states."""
        key = params, spells
        with self._lock:
            if self._compiled.get(key) is worn:
                del self._compiled[key]
        return self.compiled(params, spells=spells)

    def _evict(self) -> None:
        """Let the least recently used grammars go until the others are within the bound."""
        num_bytes = sum(grammar.num_bytes for grammar in self._compiled.values())
        while num_bytes > self._cache_bytes:
            num_bytes -= self._compiled.popitem(last=False)[1].num_bytes


class GrammarChecker:
    """Refuses what no answer can follow, where requests come in: it needs no whole vocabulary.

    It keeps verdicts, by digest, and no grammars. For any thread.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._compiler = GrammarCompiler(vocabulary, is_bare=True, cache_bytes=0)
        self._verdicts: OrderedDict[bytes, InvalidRequestError | None] = OrderedDict()
        self._verdicts_lock = threading.Lock()

    def check(self, params: StructuredOutputsParams) -> None:
        """Raise InvalidRequestError, naming the keyword at fault. May take half a second."""
        key = _digest(params)
        with self._verdicts_lock:
            is_known = key in self._verdicts
            error = self._verdicts.get(key)
        if not is_known:
            error = self.judge(params)
        with self._verdicts_lock:
            self._verdicts[key] = error
            self._verdicts.move_to_end(key)
            if len(self._verdicts) > MAX_VERDICTS:
                self._verdicts.popitem(last=False)
        if error is not None:
            # A new one each time: whoever catches it may put it into other words.
            raise InvalidRequestError(error.message, param=error.param, code=error.code)

    def is_known(self, params: StructuredOutputsParams) -> bool:
        """Whether `check` has its verdict already, and takes no time."""
        return _digest(params) in self._verdicts

    def judge(self, params: StructuredOutputsParams) -> InvalidRequestError | None:
        """Compile a grammar; return the error that refuses it."""
        try:
            self._compiler.compiled(params)
        except InvalidRequestError as error:
            return InvalidRequestError(error.message, param=error.param, code=error.code)
        return None


def _digest(params: StructuredOutputsParams) -> bytes:
    return blake2b(msgspec.msgpack.encode(params), digest_size=32).digest()


def _with_stack[T](work: Callable[[], T]) -> T:
    """Return what work does on a thread of STACK_BYTES.

    llguidance recurses from each definition of a schema to those that it refers to: on a stack of
    the usual 8 MiB, a chain of a thousand kills the process.
    """
    found: Future[T] = Future()

    def run() -> None:
        try:
            found.set_result(work())
        except BaseException as error:  # noqa: BLE001 (raised again below)
            found.set_exception(error)

    with _stack_size:
        before = threading.stack_size(STACK_BYTES)
        try:
            thread = threading.Thread(target=run, name="jaxserve-grammar", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    return found.result()


def _reason(message: str) -> str:
    """Say in our words what llguidance says of a grammar; it speaks of nothing else."""
    for pattern, words in _REASONS:
        found = pattern.search(message)
        if found is not None:
            return words.format(found[1].replace('"', "")[:MAX_REASON_CHARS]).rstrip(": ")
    words = " ".join(message.partition("<non-verbose/>")[0].split())
    return f"cannot be followed: {words[:MAX_REASON_CHARS]}"
