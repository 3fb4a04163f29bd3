"""Compile grammars within limits of time and memory, and cache them."""

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

# Limits of llguidance: a tenth of a second of lexing to compile; 3 ms of lexing and 3 ms of parsing
# per bitmask; lexer states of 1 or 2 kB each.
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=50_000,
    # An object with MAX_OPTIONAL_PROPERTIES needs four items for each.
    max_items_in_row=10_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
# Number of grammars compiled concurrently; the largest take half a second each.
MAX_COMPILING = 2
CACHE_BYTES = 2**26
# Lower bound on the size of a compiled grammar, measured over schemas of 1 to 300 properties. The
# actual size is measured where `heap_bytes` is available.
BYTES_PER_GRAMMAR = 2**17
BYTES_PER_SOURCE_BYTE = 16
# All matchers of a grammar share its lexer states, which grow with the number of tokens matched.
# A string of bounded length is the worst case measured. LIMITS bounds them.
BYTES_PER_TOKEN = 2**14
MAX_LEXER_BYTES = 100 * 2**20
MAX_VERDICTS = 2**14
MAX_REASON_CHARS = 200
# Address space; the pages used are returned once the grammar is compiled. The longest chain of
# references in a schema of MAX_BYTES takes less than half.
STACK_BYTES = 2**27
_stack_size = threading.Lock()

NO_DEFAULTS = StructuredOutputsConfig()

# Parameters, and whether forced text has one spelling.
type _Key = tuple[StructuredOutputsParams, bool]

# llguidance's error messages, and ours for them.
_REASONS = (
    (re.compile(r"Unimplemented keys: \[(.*)\]"), "uses keywords that are not supported: {}"),
    (re.compile(r"Unknown format: (.*)"), "uses a format that is not supported: {}"),
    (re.compile(r"Resource '(.*?)' is not present"), "has a $ref outside of itself: {}"),
    (re.compile(r"(oneOf) constraints are not"), "uses {} with choices that are not exclusive"),
    (re.compile(r"Unsatisfiable schema: (.*)"), "cannot be satisfied: {}"),
    (re.compile(r"NoExtensionBias()"), "cannot be satisfied"),
)


class CompiledGrammar:
    """A compiled grammar. num_tokens: number of tokens that its matchers have consumed."""

    __slots__ = ("_matcher", "_num_bytes", "num_tokens")

    def __init__(self, matcher: LLMatcher, num_bytes: int) -> None:
        self._matcher = matcher
        self._num_bytes = num_bytes
        self.num_tokens = 0

    @property
    def num_bytes(self) -> int:
        """Upper estimate of its current size, with its lexer states."""
        return self._num_bytes + min(self.num_tokens * BYTES_PER_TOKEN, MAX_LEXER_BYTES)

    def matcher(self) -> LLMatcher:
        """Return a new matcher at the beginning of an answer. The caller owns it."""
        return self._matcher.deep_copy()


class GrammarCompiler:
    """Compiles grammars, with an LRU cache. Thread-safe, but blocking: not for an event loop.

    defaults: the server's settings, for requests that do not set their own. is_bare: whether to
    use a vocabulary of bytes and added tokens only, which is enough for a check. cache_bytes:
    maximum size of the cached grammars.
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
        """Number of int32 words in a bitmask."""
        return self._vocabulary.num_words

    @property
    def num_kept(self) -> int:
        """Number of cached grammars."""
        return len(self._compiled)

    def is_kept(self, params: StructuredOutputsParams) -> bool:
        """Whether a grammar is in the cache."""
        return (params, True) in self._compiled

    def text_of(self, token_id: int) -> bytes:
        """Return the text of a token."""
        return self._tokens().decode_bytes([token_id])

    def compiled(self, params: StructuredOutputsParams, *, spells: bool = True) -> CompiledGrammar:
        """Return the compiled grammar, from the cache if it is there.

        spells: whether forced text has a single spelling, that of the tokenizer. Raises
        InvalidRequestError, naming the keyword at fault, if the grammar is invalid or unsupported.
        """
        key = params, spells
        with self._lock:
            found = self._compiled.get(key)
            if found is not None:
                self._compiled.move_to_end(key)
                # Its lexer may have outgrown the cache; it is then compiled again next time.
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
                # Raises a more precise error if the pattern is at fault.
                self._check_pattern("whitespace_pattern", params.whitespace_pattern)
            raise refusal(params.kind, _reason(matcher.get_error()))
        # Only an estimate, because other threads allocate at the same time.
        grown = min(heap_bytes() - before, MAX_LEXER_BYTES)
        estimate = BYTES_PER_GRAMMAR + BYTES_PER_SOURCE_BYTE * len(source)
        grammar = CompiledGrammar(matcher, max(grown, estimate))
        with self._lock:
            self._compiled.setdefault(key, grammar)
            self._evict()
        return grammar

    def _check_pattern(self, name: str, pattern: str) -> None:
        """Raise InvalidRequestError for a field if its regex alone does not compile."""
        try:
            self.compiled(StructuredOutputsParams(regex=pattern))
        except InvalidRequestError as error:
            raise refusal(name, error.message.partition(" ")[2]) from error

    def _compile(self, source: str) -> LLMatcher:
        matcher = LLMatcher(self._tokens(), source, limits=LIMITS, log_level=0)
        if not matcher.is_error():
            # Some grammars only fail here: those without an end, and those that exceed LIMITS.
            matcher.compute_bitmask()
        return matcher

    def matcher(self, params: StructuredOutputsParams, *, spells: bool = True) -> LLMatcher:
        """Return a new matcher at the beginning of an answer; see `compiled`."""
        return self.compiled(params, spells=spells).matcher()

    def renewed(
        self, params: StructuredOutputsParams, worn: CompiledGrammar, *, spells: bool = True
    ) -> CompiledGrammar:
        """Compile a grammar again to replace `worn`, whose lexer has no room for more states."""
        key = params, spells
        with self._lock:
            if self._compiled.get(key) is worn:
                del self._compiled[key]
        return self.compiled(params, spells=spells)

    def _evict(self) -> None:
        """Evict the least recently used grammars until the cache is within its limit."""
        num_bytes = sum(grammar.num_bytes for grammar in self._compiled.values())
        while num_bytes > self._cache_bytes:
            num_bytes -= self._compiled.popitem(last=False)[1].num_bytes


class GrammarChecker:
    """Checks the grammars of requests without the whole vocabulary. Thread-safe.

    Caches the verdicts by digest, not the grammars.
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
            # A new object each time, because handlers may change its message.
            raise InvalidRequestError(error.message, param=error.param, code=error.code)

    def is_known(self, params: StructuredOutputsParams) -> bool:
        """Whether the verdict is cached, so that `check` returns at once."""
        return _digest(params) in self._verdicts

    def judge(self, params: StructuredOutputsParams) -> InvalidRequestError | None:
        """Compile a grammar; return the error, or None if it compiles."""
        try:
            self._compiler.compiled(params)
        except InvalidRequestError as error:
            return InvalidRequestError(error.message, param=error.param, code=error.code)
        return None


def _digest(params: StructuredOutputsParams) -> bytes:
    return blake2b(msgspec.msgpack.encode(params), digest_size=32).digest()


def _with_stack[T](work: Callable[[], T]) -> T:
    """Run `work` on a thread with a stack of STACK_BYTES, and return its result.

    llguidance follows the references of a schema recursively. On the usual 8 MiB of stack, a chain
    of a thousand references crashes the process.
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
    """Translate an error message of llguidance."""
    for pattern, words in _REASONS:
        found = pattern.search(message)
        if found is not None:
            return words.format(found[1].replace('"', "")[:MAX_REASON_CHARS]).rstrip(": ")
    words = " ".join(message.partition("<non-verbose/>")[0].split())
    return f"is not a valid grammar: {words[:MAX_REASON_CHARS]}"
