"""Answers on their way through their grammars, on threads beside the engine's.

llguidance works without the GIL, so that masks are computed while the engine plans and the device
computes. The engine asks for an answer's next move as soon as it knows a token, and looks later
whether it has come.
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
TOO_COMPLEX = "is too complex: what may come next has more possibilities than can be followed"
# How llguidance says that a grammar needs more than its limits.
LIMIT_REACHED = re.compile(r"max is|limit|exceed|too (?:large|many|complex|big)", re.IGNORECASE)
# How it says that the states of a lexer, a cache that only grows, have filled it.
LEXER_FULL = re.compile(r"too many states")
# Tokens for which a new lexer must last. Each makes some states, and following the answer so far
# through a new lexer makes about one for each byte.
MIN_TOKENS_PER_LEXER = 256
# Where so few tokens are allowed, it is asked whether they only spell one text.
MAX_FORKS = 64


class Move(Struct, frozen=True):
    """What a grammar says of the tokens that come next.

    forced: those that must come. mask: int32[words], a bit for each token that may come after
    them; None where the answer is complete, or error is not None. is_refused: whether the request
    is to blame for the error.
    """

    forced: tuple[int, ...] = ()
    mask: np.ndarray | None = None
    error: str | None = None
    is_refused: bool = False


class Walk:
    """One answer's way. move: None until it is known; may_jump: whether tokens may be forced."""

    __slots__ = (
        "grammar",
        "matcher",
        "may_jump",
        "move",
        "params",
        "renew_after",
        "run",
        "spells",
        "token_ids",
    )

    def __init__(self, params: StructuredOutputsParams, *, may_jump: bool) -> None:
        self.params = params
        self.may_jump = may_jump
        self.move: Move | None = None
        self.grammar: CompiledGrammar | None = None
        self.matcher: LLMatcher | None = None
        # Whether the grammar spells text that must come in one way.
        self.spells = True
        self.token_ids: list[int] = []
        # Number of tokens before which the grammar is not renewed.
        self.renew_after = 0
        # Characters of numbers that the answer so far ends in; see numbers.py.
        self.run = b""


class Walks:
    """Computes the moves of answers; used by one thread, the engine's."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._executor = LLExecutor()
        self._compiling = ThreadPoolExecutor(MAX_COMPILING, "jaxserve-compile")
        # For those that are compiled already, which do not wait for those that are not.
        self._starting = ThreadPoolExecutor(1, "jaxserve-grammars")
        self._moving = ThreadPoolExecutor(1, "jaxserve-masks")
        self._newest: Future[None] | None = None
        self._has_moved = threading.Event()

    def begin(
        self,
        params: StructuredOutputsParams,
        count: int,
        *,
        may_jump: bool,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> list[Walk]:
        """Return the ways of so many answers to one request; their first move comes later.

        is_wanted: whether it still matters, asked on another thread when it is their turn.
        """
        walks = [Walk(params, may_jump=may_jump) for _ in range(count)]

        def start() -> None:
            if is_wanted():
                self._start(params, walks)

        lane = self._starting if self._compiler.is_kept(params) else self._compiling
        lane.submit(self._safely, walks, start)
        return walks

    def advance(self, steps: Sequence[tuple[Walk, int]]) -> None:
        """Take note of the tokens that came, one for each walk; their next move comes later."""
        for walk, _ in steps:
            walk.move = None
        walks = [walk for walk, _ in steps]
        self._newest = self._moving.submit(self._safely, walks, lambda: self._advance(steps))

    def wait(self, timeout_s: float) -> None:
        """Wait for the moves asked for by `advance`."""
        if self._newest is not None:
            wait([self._newest], timeout_s)

    def wait_for_any(self, timeout_s: float) -> None:
        """Wait until some move has come since this was called last."""
        self._has_moved.wait(timeout_s)
        self._has_moved.clear()

    def _safely(self, walks: Sequence[Walk], work: Callable[[], None]) -> None:
        try:
            work()
        except InvalidRequestError as error:
            _fail(walks, error.message, is_refused=True)
        except Exception:
            logger.exception("a grammar has failed")
            _fail(walks, FAILED)
        self._has_moved.set()

    def _start(self, params: StructuredOutputsParams, walks: Sequence[Walk]) -> None:
        grammar = self._compiler.compiled(params)
        for walk in walks:
            walk.grammar, walk.matcher = grammar, grammar.matcher()
        self._look([(walk, ()) for walk in walks])

    def _advance(self, steps: Sequence[tuple[Walk, int]]) -> None:
        pairs = [(walk.matcher, token_id) for walk, token_id in steps if walk.matcher is not None]
        self._executor.consume_token_par(pairs)
        for walk, token_id in steps:
            self._append(walk, [token_id])
            if walk.grammar is not None:
                walk.grammar.num_tokens += 1
        self._look([(walk, ()) for walk, _ in steps])

    def _append(self, walk: Walk, token_ids: Sequence[int]) -> None:
        walk.token_ids += token_ids
        if walk.params.has_json:
            for token_id in token_ids:
                walk.run = run_after(walk.run, self._compiler.text_of(token_id))

    def _look(self, ways: Sequence[tuple[Walk, tuple[int, ...]]]) -> None:
        """Find the next move of each walk, some tokens of which are known to be forced."""
        open_ways = []
        for walk, forced in ways:
            self._renew_if_full(walk)
            if not _has_ended(walk, forced):
                open_ways.append((walk, forced))
        if not open_ways:
            return
        masks = np.empty((len(open_ways), self._compiler.num_words), np.int32)
        matchers = [(_matcher(walk), index) for index, (walk, _) in enumerate(open_ways)]
        fill_next_token_bitmask_par(self._executor, matchers, masks)
        few = np.bitwise_count(masks).sum(axis=1) <= MAX_FORKS
        again = []
        for (walk, forced), mask, is_few in zip(open_ways, masks, few, strict=True):
            if self._renew_if_full(walk):
                again.append((walk, forced))
                continue
            if _has_ended(walk, forced):
                continue
            spelled, valid = _spelled(walk) if is_few else ([], [])
            if spelled and not valid:
                self._follow_unspelled(walk)
                again.append((walk, forced))
            elif valid and walk.may_jump and _matcher(walk).consume_tokens(valid):
                self._append(walk, valid)
                again.append((walk, (*forced, *valid)))
            elif self._renew_if_full(walk):
                again.append((walk, forced))
            elif not _has_ended(walk, forced):
                walk.move = Move(forced, bounded(mask, walk.run, self._compiler.text_of))
        if again:
            self._look(again)

    def _follow_unspelled(self, walk: Walk) -> None:
        """Go the same way by a matcher that allows every spelling of a text that must come."""
        walk.spells = False
        _retrace(walk, self._compiler.compiled(walk.params, spells=False))

    def _renew_if_full(self, walk: Walk) -> bool:
        """Compile a grammar again if its lexer is full and a new one would last.

        Masks make most of the states, and the answer so far needs no masks.
        """
        if walk.grammar is None or not _is_full(_matcher(walk)):
            return False
        if len(walk.token_ids) < walk.renew_after:
            return False
        walk.renew_after = len(walk.token_ids) + MIN_TOKENS_PER_LEXER
        _retrace(walk, self._compiler.renewed(walk.params, walk.grammar, spells=walk.spells))
        return True


def _retrace(walk: Walk, grammar: CompiledGrammar) -> None:
    """Follow the answer so far through another compiled form of its grammar."""
    matcher = grammar.matcher()
    matcher.consume_tokens(walk.token_ids)
    grammar.num_tokens += len(walk.token_ids)
    walk.grammar, walk.matcher = grammar, matcher


def _is_full(matcher: LLMatcher) -> bool:
    return matcher.is_error() and LEXER_FULL.search(matcher.get_error()) is not None


def _matcher(walk: Walk) -> LLMatcher:
    assert walk.matcher is not None
    return walk.matcher


def _spelled(walk: Walk) -> tuple[list[int], list[int]]:
    """Return the one spelling of what must come, and as much of it as the grammar allows.

    llguidance spells text as its tokenizer does, which takes the text of an added token for that
    token, and its mask allows nothing else; but the token is not the text.
    """
    spelled = _matcher(walk).compute_ff_tokens()
    valid = spelled[: _matcher(walk).validate_tokens(spelled)] if spelled else []
    return spelled, valid


def _has_ended(walk: Walk, forced: tuple[int, ...]) -> bool:
    """Note it if nothing comes after the forced tokens."""
    matcher = _matcher(walk)
    if not matcher.is_stopped():
        return False
    if matcher.is_error() and LIMIT_REACHED.search(matcher.get_error()):
        complaint = refusal(walk.params.kind, TOO_COMPLEX).message
        walk.move = Move(forced, error=complaint, is_refused=True)
    else:
        walk.move = Move(forced, error=FAILED if matcher.is_error() else None)
    return True


def _fail(walks: Sequence[Walk], error: str, *, is_refused: bool = False) -> None:
    for walk in walks:
        if walk.move is None:
            walk.move = Move(error=error, is_refused=is_refused)
