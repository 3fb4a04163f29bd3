"""Translate a Lark grammar without recursion into one regular expression.

A JSON schema can constrain a string by a pattern only. So the grammar of a custom tool, whose
input is a string in JSON, must become a pattern.
"""

import re
from collections.abc import Callable, Iterator

from jaxserve.errors import InvalidRequestError

MAX_PATTERN_CHARS = 2**16
TOKEN = re.compile(
    r"""\s+ | //[^\n]*
    | (?P<string>"(?:[^"\\\n]|\\.)*"i?)
    | (?P<regex>/(?![*+?])(?:[^/\\\n]|\\.)+/[imslux]*)
    | (?P<name>[?!]?[A-Za-z_][A-Za-z0-9_]*(?:\.-?\d+(?=\s*:))?)
    | (?P<number>\d+)
    | (?P<command>%[a-z]+)
    | (?P<symbol>->|\.\.|[:|()\[\]?*+~.,])""",
    re.VERBOSE,
)
# Terminals of Lark's `common` module.
COMMON = {
    "CNAME": "[_a-zA-Z][_a-zA-Z0-9]*",
    "CR": r"\r",
    "DIGIT": "[0-9]",
    "ESCAPED_STRING": r'"(?:[^"\\\n]|\\.)*"',
    "HEXDIGIT": "[0-9a-fA-F]",
    "INT": "[0-9]+",
    "LCASE_LETTER": "[a-z]",
    "LETTER": "[a-zA-Z]",
    "LF": r"\n",
    "NEWLINE": r"(?:\r?\n)+",
    "SIGNED_INT": "[+-]?[0-9]+",
    "UCASE_LETTER": "[A-Z]",
    "WORD": "[a-zA-Z]+",
    "WS": r"[ \t\f\r\n]+",
    "WS_INLINE": r"[ \t]+",
}

type Token = tuple[str, str]


def lark_pattern(grammar: str) -> str | None:
    """Return a regular expression equivalent to a grammar; None if that is not possible.

    Recursive rules, ignored terminals and imports of other files cannot be translated, nor can
    grammars whose pattern would exceed MAX_PATTERN_CHARS. Raises InvalidRequestError if `grammar`
    is not valid Lark.
    """
    try:
        return _Rules(_tokens(grammar)).pattern("start")
    except (_IrregularError, RecursionError):
        return None
    except InvalidRequestError:  # a subclass of ValueError
        raise
    except (IndexError, ValueError) as error:
        raise _malformed("it ends too early") from error


class _IrregularError(Exception):
    """The grammar cannot be written as a regular expression."""


def _malformed(what: str) -> InvalidRequestError:
    return InvalidRequestError(f"the grammar is not valid Lark: {what}", param="tools")


def _tokens(grammar: str) -> list[Token]:
    tokens = []
    end = 0
    while end < len(grammar):
        found = TOKEN.match(grammar, end)
        if found is None:
            raise _malformed(f"unexpected {grammar[end : end + 20]!r}")
        end = found.end()
        if found.lastgroup is not None:
            tokens.append((found.lastgroup, found.group()))
    return tokens


class _Rules:
    """The rules of a grammar by name, translated to patterns on demand."""

    def __init__(self, tokens: list[Token]) -> None:
        self._patterns: dict[str, str] = {}
        self._open: set[str] = set()
        self._rules: dict[str, list[Token]] = {}
        rule: list[Token] = []
        position = 0
        while position < len(tokens):
            kind, text = tokens[position]
            if kind == "command":
                position = self._command(tokens, position)
            elif kind == "name" and tokens[position + 1 : position + 2] == [("symbol", ":")]:
                rule = self._rules[text.lstrip("?!").partition(".")[0]] = []
                position += 2
            else:
                rule.append((kind, text))
                position += 1

    def _command(self, tokens: list[Token], position: int) -> int:
        """Parse an import of Lark's own terminals; return the position after it."""
        if [text for _, text in tokens[position : position + 2]] != ["%import", "common"]:
            raise _IrregularError
        # One name after a dot, or several names in parentheses.
        is_list = tokens[position + 2] == ("symbol", "(")
        end = tokens.index(("symbol", ")"), position) if is_list else position + 3
        names = [text for kind, text in tokens[position + 3 : end + 1] if kind == "name"]
        for name in names:
            if name not in COMMON:
                raise _IrregularError
            self._patterns[name] = COMMON[name]
        return end + 1

    def pattern(self, name: str) -> str:
        """Return the pattern of a rule."""
        if name not in self._patterns:
            if name not in self._rules:
                raise _malformed(f"there is no rule {name[:64]!r}")
            if name in self._open:
                raise _IrregularError
            self._open.add(name)
            pattern = _Reader(self._rules[name], self.pattern).whole()
            if len(pattern) > MAX_PATTERN_CHARS:
                raise _IrregularError
            self._patterns[name] = pattern
        return self._patterns[name]


class _Reader:
    """Recursive-descent parser of one rule. named: returns the pattern of another rule."""

    def __init__(self, tokens: list[Token], named: Callable[[str], str]) -> None:
        self._tokens = tokens
        self._position = 0
        self._named = named

    def whole(self) -> str:
        pattern = self._options()
        if self._position < len(self._tokens):
            raise _malformed(f"unexpected {self._tokens[self._position][1]!r}")
        return pattern

    def _options(self) -> str:
        options = ["".join(self._items())]
        while self._take("|"):
            options.append("".join(self._items()))
        return options[0] if len(options) == 1 else "|".join(options)

    def _items(self) -> Iterator[str]:
        size = 0
        while (item := self._item()) is not None:
            size += len(item)
            if size > MAX_PATTERN_CHARS:
                raise _IrregularError
            yield item
        if self._take("->"):
            self._position += 1  # an alias

    def _item(self) -> str | None:
        atom = self._atom()
        if atom is None:
            return None
        atom = f"(?:{atom})"
        for sign in "?*+":
            if self._take(sign):
                return atom + sign
        if self._take("~"):
            low = self._number()
            high = self._number() if self._take("..") else low
            return f"{atom}{{{low},{high}}}"
        return atom

    def _atom(self) -> str | None:
        if self._take("("):
            inner = self._options()
            self._expect(")")
            return inner
        if self._take("["):
            inner = self._options()
            self._expect("]")
            return f"(?:{inner})?"
        if self._position == len(self._tokens):
            return None
        kind, text = self._tokens[self._position]
        if kind not in {"string", "regex", "name"}:
            return None
        self._position += 1
        if kind == "name":
            return self._named(text)
        if kind == "regex":
            body, _, flags = text[1:].rpartition("/")
            return f"(?{flags}:{body})" if flags else body
        if self._take(".."):
            _, end = self._tokens[self._position]
            self._position += 1
            return f"[{_literal(text)}-{_literal(end)}]"
        return _literal(text)

    def _number(self) -> int:
        kind, text = (
            self._tokens[self._position] if self._position < len(self._tokens) else ("", "")
        )
        if kind != "number":
            raise _malformed(f"expected a number, got {text!r}")
        self._position += 1
        return int(text)

    def _take(self, symbol: str) -> bool:
        is_next = self._tokens[self._position : self._position + 1] == [("symbol", symbol)]
        self._position += is_next
        return is_next

    def _expect(self, symbol: str) -> None:
        if not self._take(symbol):
            raise _malformed(f"expected {symbol!r}")


def _literal(string: str) -> str:
    """Return the pattern of a quoted string."""
    body, ignores_case = (string[1:-2], True) if string.endswith("i") else (string[1:-1], False)
    unescaped = re.sub(r"\\(.)", _unescaped, body)
    # Write a line break as `\n`: re.escape would put a backslash before the character itself.
    pattern = re.escape(unescaped).replace("\\\n", r"\n").replace("\\\t", r"\t")
    return f"(?i:{pattern})" if ignores_case else pattern.replace(r"\ ", " ")


def _unescaped(found: re.Match[str]) -> str:
    return {"n": "\n", "r": "\r", "t": "\t", "f": "\f"}.get(found[1], found[1])
