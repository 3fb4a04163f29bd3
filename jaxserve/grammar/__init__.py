"""Structured outputs: grammars, and the token bitmasks that enforce them."""

from jaxserve.grammar.calls import Function as Function
from jaxserve.grammar.calls import calls_or as calls_or
from jaxserve.grammar.calls import can_bind as can_bind
from jaxserve.grammar.calls import forced_calls as forced_calls
from jaxserve.grammar.calls import strict_calls as strict_calls
from jaxserve.grammar.compiler import GrammarChecker as GrammarChecker
from jaxserve.grammar.compiler import GrammarCompiler as GrammarCompiler
from jaxserve.grammar.lark_pattern import lark_pattern as lark_pattern
from jaxserve.grammar.matchers import MatcherPool as MatcherPool
from jaxserve.grammar.sandbox import GrammarSandbox as GrammarSandbox
from jaxserve.grammar.vocabulary import Vocabulary as Vocabulary
