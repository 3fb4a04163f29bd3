"""Grammar matchers, which compute token bitmasks on threads beside the engine's.

llguidance releases the GIL, so bitmasks are computed while the engine plans and the device runs a
step. The engine passes each new token to its matcher at once, and reads the next bitmask later.
"""

import logging
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import fill_next_token_bitmask_par
from msgspec import Struct

from jaxserve.api.structured_outputs import StructuredOutputsParams, refusal
from jaxserve.errors import InvalidRequestError
from jaxserve.grammar.compiler import MAX_COMPILING, CompiledGrammar, GrammarCompiler
from jaxserve.grammar.numbers import bounded, run_after

logger = logging.getLogger(__name__)

FAILED = "the grammar could not be followed any further"
TOO_COMPLEX = "is too complex: it allows more continuations than the matcher can follow"
# llguidance's messages when a grammar exceeds a limit.
LIMIT_REACHED = re.compile(r"max is|limit|exceed|too (?:large|many|complex|big)", re.IGNORECASE)
# Its message when a lexer has as many states as it may; the states are a cache that only grows.
LEXER_FULL = re.compile(r"too many states")
# A lexer is replaced at most once in this many tokens: each token adds some states, and replaying
# the answer through a new lexer adds about one state per byte.
MIN_TOKENS_PER_LEXER = 256
# With at most this many allowed tokens, they may be the spellings of one forced text.
MAX_FORKS = 64


class NextTokens(Struct, frozen=True):
    """The tokens that a grammar forces or allows next.

    forced: the tokens that must come. bitmask: int32[words], one bit per token that may follow
    them; None if the answer is complete or there is an error. is_refused: whether the error is
    the request's fault.
    """

    forced: tuple[int, ...] = ()
    bitmask: np.ndarray | None = None
    error: str | None = None
    is_refused: bool = False


class GrammarMatcher:
    """State of one answer in its grammar.

    next: the next tokens, None while they are being computed. may_jump: whether forced tokens are
    appended without sampling.
    """

    __slots__ = (
        "grammar",
        "ll_matcher",
        "may_jump",
        "next",
        "params",
        "renew_after",
        "run",
        "spells",
        "token_ids",
    )

    def __init__(self, params: StructuredOutputsParams, *, may_jump: bool) -> None:
        self.params = params
        self.may_jump = may_jump
        self.next: NextTokens | None = None
        self.grammar: CompiledGrammar | None = None
        self.ll_matcher: LLMatcher | None = None
        # Whether forced text must be spelled in one way.
        self.spells = True
        self.token_ids: list[int] = []
        # Number of tokens before which the grammar is not compiled again.
        self.renew_after = 0
        # The characters of a number at the end of the answer so far; see numbers.py.
        self.run = b""


class MatcherPool:
    """Runs the matchers of all answers; called by the engine's thread only."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._executor = LLExecutor()
        self._compiling = ThreadPoolExecutor(MAX_COMPILING, "jaxserve-compile")
        # For grammars in the cache, so that they do not wait for those being compiled.
        self._starting = ThreadPoolExecutor(1, "jaxserve-grammars")
        self._advancing = ThreadPoolExecutor(1, "jaxserve-masks")
        self._newest: Future[None] | None = None
        self._has_advanced = threading.Event()

    def begin(
        self,
        params: StructuredOutputsParams,
        count: int,
        *,
        may_jump: bool,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> list[GrammarMatcher]:
        """Return `count` matchers of one request's grammar; their `next` is set later.

        is_wanted: called on another thread before compiling; False cancels it.
        """
        matchers = [GrammarMatcher(params, may_jump=may_jump) for _ in range(count)]

        def start() -> None:
            if is_wanted():
                self._start(params, matchers)

        lane = self._starting if self._compiler.is_kept(params) else self._compiling
        lane.submit(self._safely, matchers, start)
        return matchers

    def advance(self, steps: Sequence[tuple[GrammarMatcher, int]]) -> None:
        """Pass one sampled token to each matcher; their `next` is set later."""
        for matcher, _ in steps:
            matcher.next = None
        matchers = [matcher for matcher, _ in steps]
        self._newest = self._advancing.submit(self._safely, matchers, lambda: self._advance(steps))

    def wait(self, timeout_s: float) -> None:
        """Wait until the matchers of the latest `advance` have their next tokens."""
        if self._newest is not None:
            wait([self._newest], timeout_s)

    def wait_for_any(self, timeout_s: float) -> None:
        """Wait until some matcher has had its next tokens since the last call."""
        self._has_advanced.wait(timeout_s)
        self._has_advanced.clear()

    def _safely(self, matchers: Sequence[GrammarMatcher], work: Callable[[], None]) -> None:
        try:
            work()
        except InvalidRequestError as error:
            _fail(matchers, error.message, is_refused=True)
        except Exception:
            logger.exception("a grammar matcher failed")
            _fail(matchers, FAILED)
        self._has_advanced.set()

    def _start(self, params: StructuredOutputsParams, matchers: Sequence[GrammarMatcher]) -> None:
        grammar = self._compiler.compiled(params)
        for matcher in matchers:
            matcher.grammar, matcher.ll_matcher = grammar, grammar.matcher()
        self._look([(matcher, ()) for matcher in matchers])

    def _advance(self, steps: Sequence[tuple[GrammarMatcher, int]]) -> None:
        pairs = [
            (matcher.ll_matcher, token_id)
            for matcher, token_id in steps
            if matcher.ll_matcher is not None
        ]
        self._executor.consume_token_par(pairs)
        for matcher, token_id in steps:
            self._append(matcher, [token_id])
            if matcher.grammar is not None:
                matcher.grammar.num_tokens += 1
        self._look([(matcher, ()) for matcher, _ in steps])

    def _append(self, matcher: GrammarMatcher, token_ids: Sequence[int]) -> None:
        matcher.token_ids += token_ids
        if matcher.params.has_json:
            for token_id in token_ids:
                matcher.run = run_after(matcher.run, self._compiler.text_of(token_id))

    def _look(self, pending: Sequence[tuple[GrammarMatcher, tuple[int, ...]]]) -> None:
        """Set the next tokens of each matcher, given those already known to be forced."""
        unfinished = []
        for matcher, forced in pending:
            self._renew_if_full(matcher)
            if not _has_ended(matcher, forced):
                unfinished.append((matcher, forced))
        if not unfinished:
            return
        masks = np.empty((len(unfinished), self._compiler.num_words), np.int32)
        matchers = [(_ll(matcher), index) for index, (matcher, _) in enumerate(unfinished)]
        fill_next_token_bitmask_par(self._executor, matchers, masks)
        few = np.bitwise_count(masks).sum(axis=1) <= MAX_FORKS
        again = []
        for (matcher, forced), mask, is_few in zip(unfinished, masks, few, strict=True):
            if self._renew_if_full(matcher):
                again.append((matcher, forced))
                continue
            if _has_ended(matcher, forced):
                continue
            spelled, valid = _spelled(matcher) if is_few else ([], [])
            if spelled and not valid:
                self._follow_unspelled(matcher)
                again.append((matcher, forced))
            elif valid and matcher.may_jump and _ll(matcher).consume_tokens(valid):
                self._append(matcher, valid)
                again.append((matcher, (*forced, *valid)))
            elif self._renew_if_full(matcher):
                again.append((matcher, forced))
            elif not _has_ended(matcher, forced):
                matcher.next = NextTokens(
                    forced, bounded(mask, matcher.run, self._compiler.text_of)
                )
        if again:
            self._look(again)

    def _follow_unspelled(self, matcher: GrammarMatcher) -> None:
        """Replace the matcher by one that allows every spelling of forced text."""
        matcher.spells = False
        _replay(matcher, self._compiler.compiled(matcher.params, spells=False))

    def _renew_if_full(self, matcher: GrammarMatcher) -> bool:
        """Compile the grammar again if its lexer is full; return whether it did.

        Computing bitmasks adds most of the states, and replaying the answer needs no bitmasks.
        """
        if matcher.grammar is None or not _is_full(_ll(matcher)):
            return False
        if len(matcher.token_ids) < matcher.renew_after:
            return False
        matcher.renew_after = len(matcher.token_ids) + MIN_TOKENS_PER_LEXER
        _replay(
            matcher, self._compiler.renewed(matcher.params, matcher.grammar, spells=matcher.spells)
        )
        return True


def _replay(matcher: GrammarMatcher, grammar: CompiledGrammar) -> None:
    """Replay the answer so far in another compiled form of its grammar."""
    ll_matcher = grammar.matcher()
    ll_matcher.consume_tokens(matcher.token_ids)
    grammar.num_tokens += len(matcher.token_ids)
    matcher.grammar, matcher.ll_matcher = grammar, ll_matcher


def _is_full(ll_matcher: LLMatcher) -> bool:
    return ll_matcher.is_error() and LEXER_FULL.search(ll_matcher.get_error()) is not None


def _ll(matcher: GrammarMatcher) -> LLMatcher:
    assert matcher.ll_matcher is not None
    return matcher.ll_matcher


def _spelled(matcher: GrammarMatcher) -> tuple[list[int], list[int]]:
    """Return the spelling of the forced text, and the part of it that the grammar allows.

    llguidance tokenizes forced text as its tokenizer does, and its bitmask allows only that. Where
    the text equals an added token, it proposes the added token, which does not match the text.
    """
    spelled = _ll(matcher).compute_ff_tokens()
    valid = spelled[: _ll(matcher).validate_tokens(spelled)] if spelled else []
    return spelled, valid


def _has_ended(matcher: GrammarMatcher, forced: tuple[int, ...]) -> bool:
    """Return whether the answer ends after the forced tokens; if so, set `next`."""
    ll_matcher = _ll(matcher)
    if not ll_matcher.is_stopped():
        return False
    if ll_matcher.is_error() and LIMIT_REACHED.search(ll_matcher.get_error()):
        complaint = refusal(matcher.params.kind, TOO_COMPLEX).message
        matcher.next = NextTokens(forced, error=complaint, is_refused=True)
    else:
        matcher.next = NextTokens(forced, error=FAILED if ll_matcher.is_error() else None)
    return True


def _fail(matchers: Sequence[GrammarMatcher], error: str, *, is_refused: bool = False) -> None:
    for matcher in matchers:
        if matcher.next is None:
            matcher.next = NextTokens(error=error, is_refused=is_refused)
