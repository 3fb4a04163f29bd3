"""Lark grammars without recursion become one regular expression."""

import re

import pytest

from jaxserve.errors import InvalidRequestError
from jaxserve.grammar import lark_pattern

# In the manner of the grammars that agents give their tools for patches.
PATCH = r"""
// a patch of files
start: begin change+ end
begin: "*** Begin" LF
end: "*** End" LF?

change: add | remove
add: "*** Add: " name LF line+
remove: "*** Remove: " name LF
name: /(.+)/
?line: ("+" | " ") /(.*)/ LF -> content

%import common.LF
"""


@pytest.mark.parametrize(
    ("grammar", "right", "wrong"),
    [
        (
            PATCH,
            [
                "*** Begin\n*** Add: a.b\n+x\n \n*** Remove: c\n*** End\n",
                "*** Begin\n*** Add: a\n+\n*** End",
            ],
            ["*** Begin\n*** End", "*** Begin\n*** Add: a\nx\n*** End", "*** Begin\n*** Add: \n"],
        ),
        ('start: "a".."c"~2..3 ["x"i]', ["ab", "abcX"], ["a", "abcd", "abcxx"]),
        ('start: A | (B ","?)+\nA.2: "\\"."\nB: /\\d/', ['".', "1,2", "3"], ["", '"x']),
        ("start: WORD WS INT\n%import common (WORD, WS)\n%import common.INT", ["a 1"], ["1 a"]),
        ('start: "a"~2', ["aa"], ["a", "aaa"]),
    ],
)
def test_the_same_texts_match(grammar: str, right: list[str], wrong: list[str]) -> None:
    pattern = lark_pattern(grammar)
    assert pattern is not None
    assert [text for text in right if not re.fullmatch(pattern, text)] == []
    assert [text for text in wrong if re.fullmatch(pattern, text)] == []


@pytest.mark.parametrize(
    "grammar",
    [
        'start: "(" start? ")"',
        'start: a\na: b\nb: "x" a | "y"',
        'start: "a"\n%ignore " "',
        'start: "a"\n%import python.NAME',
        "start: " + "(" * 100_000,
        'start: a a a a\na: b b b b\nb: c c c c\nc: "' + "x" * 4096 + '"',
    ],
)
def test_there_may_be_none(grammar: str) -> None:
    assert lark_pattern(grammar) is None


@pytest.mark.parametrize(
    "grammar",
    ["", "start: x", 'start: ("a"', 'start: "a"~', 'start: "a" ..', "start: &", 'start: "a" )'],
)
def test_a_text_that_is_no_grammar_is_refused(grammar: str) -> None:
    with pytest.raises(InvalidRequestError, match="not valid Lark"):
        lark_pattern(grammar)
