"""An end for the numbers of JSON, whose digits no schema bounds.

A model that repeats itself writes digits until its answer is as long as it may be, and exponents
that no float can hold. llguidance has no bound for either, so its masks get one: where a number may
end, it does before it is longer than MAX_CHARS. A schema that asks for more digits gets them.
"""

import re
from collections.abc import Callable

import numpy as np

# Digits, sign and point. The integers of 128 bits and the decimals of 34 digits are shorter.
MAX_CHARS = 48
_RUN = re.compile(rb"[0-9eE.+-]*\Z")
_LEAD = re.compile(rb"[0-9eE.+-]*")
_EXPONENT = re.compile(rb"[0-9][eE][+-]?[0-9]*\Z")
# With two digits in its exponent, a number of MAX_CHARS is within the range of doubles.
_FITS = re.compile(rb"-?[0-9]*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{0,2})?")


def run_after(run: bytes, text: bytes) -> bytes:
    """Return the characters of numbers that a text ends in, given those before it."""
    found = _RUN.search(run + text[-MAX_CHARS:])
    return found[0][-2 * MAX_CHARS :] if found else b""


def bounded(mask: np.ndarray, run: bytes, text_of: Callable[[int], bytes]) -> np.ndarray:
    """Return a mask without the tokens that would make a number too long.

    mask: int32[words], a bit for each token. run: the characters of numbers that the text ends in.
    It is the mask itself where no number is written, and where a longer one is the only way on.
    """
    if len(run) < MAX_CHARS // 2 and not _EXPONENT.search(run):
        return mask
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    kept: list[int] = []
    for token_id in np.flatnonzero(bits).tolist():
        text = text_of(token_id)
        lead = _LEAD.match(text)
        if lead and lead[0]:
            whole = run + lead[0]
            if len(whole) <= MAX_CHARS and _FITS.fullmatch(whole):
                kept.append(token_id)
        elif text[:1].isalnum() or text[:1] == b'"' or text[:1] >= b"\x80":
            return mask  # a text, in which there may be any digits
        else:
            kept.append(token_id)
    if not kept:
        return mask
    limited = np.zeros_like(bits)
    limited[kept] = 1
    return np.packbits(limited, bitorder="little").view(np.int32)
