"""Sums, differences, products and even quotients of small numbers.

Some pairs of numbers are never trained on (`is_held_out`): a right answer to them shows that the
model adds, and does not only remember.
"""

import random
import zlib
from dataclasses import dataclass

from examples.tiny_model.patterns import expand
from examples.tiny_model.words import SMALL_NUMBERS

LARGEST = 99
LARGEST_FACTOR = 12
TOO_HARD = "That is too hard for me. I can only add, subtract, multiply and divide small numbers."

_WORDS = {
    "+": "(plus|and|plus)",
    "-": "minus",
    "*": "(times|times|multiplied by)",
    "/": "divided by",
}
_SIGNS = {"+": ("+",), "-": ("-",), "*": ("*", "x", "*"), "/": ("/",)}
_QUESTIONS = (
    "(what is|what's|whats|how much is|calculate|compute|tell me|what does|solve) {sum}",
    "{sum}",
    "{sum} =",
    "{sum} is",
    "(can|could) you (calculate|compute|tell me) {sum}",
    "(hi|hello|hey),? what is {sum}",
    "(what is|give me|tell me) the (result|answer) of {sum}",
    "(do you know|I want to know) what {sum} is",
    "what does {sum} (make|give|equal)",
)
_HELD_OUT_QUESTIONS = (
    "could you work out {sum}",
    "please compute {sum} for me",
    "and how much would {sum} be",
)
_NAMED = {
    "+": ("(what is|calculate|) the sum of {a} and {b}", "add {a} (and|to) {b}",
          "(if |)I have {a} apples and get {b} more(.|,) how many( apples|) do I have"),
    "-": ("(what is|calculate|) the difference between {a} and {b}", "subtract {b} from {a}",
          "take {b} from {a}",
          "(if |)I have {a} apples and eat {b}(.|,) how many( apples|) (do I have|are left)"),
    "*": ("(what is|calculate|) the product of {a} and {b}", "multiply {a} (by|with|and) {b}"),
    "/": ("divide {a} by {b}",),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Problem:
    """One calculation of two whole numbers; `/` is used only where it leaves no remainder."""

    left: int
    sign: str
    right: int

    @property
    def result(self) -> int:
        """The exact result."""
        match self.sign:
            case "+":
                return self.left + self.right
            case "-":
                return self.left - self.right
            case "*":
                return self.left * self.right
            case _:
                return self.left // self.right

    @property
    def answer(self) -> str:
        """Answer of the model: the problem and its result."""
        return f"{self.left} {self.sign} {self.right} = {self.result}."

    @property
    def is_held_out(self) -> bool:
        """Whether the pair is kept from training: one in ten of those beyond single digits.

        The tables of multiplication and division are facts to be learnt, so none is held out.
        """
        if self.sign not in "+-" or max(self.left, self.right) < 10:
            return False
        return zlib.crc32(f"{self.left}{self.sign}{self.right}".encode()) % 10 == 0


def _draw(rng: random.Random) -> Problem:
    sign = rng.choice("+++----**/")
    if sign in "*/":
        left, right = rng.randint(0, LARGEST_FACTOR), rng.randint(0, LARGEST_FACTOR)
        if sign == "*":
            return Problem(left, "*", right)
        return Problem(left * max(right, 1), "/", max(right, 1))
    limit = rng.choice((10, 20, 20, 50, LARGEST))
    left, right = rng.randint(0, limit), rng.randint(0, limit)
    if sign == "-" and limit > 20:
        left, right = max(left, right), min(left, right)
    return Problem(left, sign, right)


def problem(rng: random.Random, *, held_out: bool) -> Problem:
    """Draw a problem from the trained pairs or from the held-out ones."""
    while True:
        drawn = _draw(rng)
        if drawn.is_held_out == held_out:
            return drawn


def question_for(asked: Problem, rng: random.Random, *, held_out: bool) -> str:
    """Put a problem into words or symbols."""
    if not held_out and rng.random() < 0.2:
        pattern = rng.choice(_NAMED[asked.sign])
        return expand(pattern, rng).format(a=asked.left, b=asked.right).strip()
    left, right = str(asked.left), str(asked.right)
    style = rng.random()
    if style < 0.12 and max(asked.left, asked.right) <= 20:
        left, right = SMALL_NUMBERS[asked.left], SMALL_NUMBERS[asked.right]
    if style < 0.45:
        written = f"{left} {expand(_WORDS[asked.sign], rng)} {right}"
    else:
        space = rng.choice((" ", " ", ""))
        written = f"{left}{space}{rng.choice(_SIGNS[asked.sign])}{space}{right}"
    pattern = rng.choice(_HELD_OUT_QUESTIONS if held_out else _QUESTIONS)
    return expand(pattern, rng).format(sum=written)


def too_hard_question(rng: random.Random) -> str:
    """Ask for something that the model has not learnt to compute."""
    large = rng.choice((rng.randint(101, 999), rng.randint(1000, 99999)))
    other = rng.choice((rng.randint(2, 99), rng.randint(101, 99999)))
    first, second = (large, other) if rng.random() < 0.5 else (other, large)
    kind = rng.random()
    if kind < 0.15:
        return expand(
            f"(what is|calculate|) the (square root|cube|logarithm|square) of {large}", rng
        ).strip()
    sign = rng.choice(("+", "-", "*", "/", "plus", "minus", "times", "divided by"))
    if kind < 0.35:  # no table has these
        sign = rng.choice(("*", "times", "x", "/"))
        first, second = rng.randint(LARGEST_FACTOR + 1, 99), rng.randint(LARGEST_FACTOR + 1, 99)
        if sign == "/" and first % second == 0:
            first += 1
    return expand(rng.choice(_QUESTIONS), rng).format(sum=f"{first} {sign} {second}")
