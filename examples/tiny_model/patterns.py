"""A pattern is a line of text with choices: `(hi|hello) there(!|)` stands for four lines.

Choices nest, an empty choice is allowed, and `{name}` is left alone for `str.format`.
"""

import random

_MARKS = "(|)"


def expand(pattern: str, rng: random.Random) -> str:
    """Draw one line from a pattern; each choice is drawn uniformly.

    Raises:
        ValueError: the parentheses of `pattern` do not match.
    """
    text, end = _sequence(pattern, 0, rng)
    if end != len(pattern):
        raise ValueError(f"unmatched parenthesis at {end} in pattern {pattern!r}")
    return text


def _sequence(pattern: str, start: int, rng: random.Random) -> tuple[str, int]:
    """Read literal text and choices from `start` to a mark that is not ours, or the end."""
    parts: list[str] = []
    at = start
    while at < len(pattern):
        if pattern[at] == "(":
            choices: list[str] = []
            while pattern[at] != ")":
                choice, at = _sequence(pattern, at + 1, rng)
                if at == len(pattern):
                    raise ValueError(f"parenthesis at {start} is never closed in {pattern!r}")
                choices.append(choice)
            parts.append(rng.choice(choices))
            at += 1
        elif pattern[at] in _MARKS:
            break
        else:
            parts.append(pattern[at])
            at += 1
    return "".join(parts), at
