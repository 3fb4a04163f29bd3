"""A limit on the length of numbers in JSON.

A model that repeats itself can write digits up to the length limit of its answer, or an exponent
that no float can represent. llguidance limits neither. This module removes tokens from its bitmask
so that a number ends before it exceeds MAX_CHARS, unless the schema requires more digits.
"""

import re
from collections.abc import Callable

import numpy as np

# Longer than any 128-bit integer or 34-digit decimal, with sign and point.
MAX_CHARS = 48
_RUN = re.compile(rb"[0-9eE.+-]*\Z")
_LEAD = re.compile(rb"[0-9eE.+-]*")
_EXPONENT = re.compile(rb"[0-9][eE][+-]?[0-9]*\Z")
# With at most two digits in the exponent, a number of MAX_CHARS is within the range of doubles.
_FITS = re.compile(rb"-?[0-9]*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{0,2})?")


def run_after(run: bytes, text: bytes) -> bytes:
    """Return the number at the end of `run + text`, where `run` is the number before `text`."""
    found = _RUN.search(run + text[-MAX_CHARS:])
    return found[0][-2 * MAX_CHARS :] if found else b""


def bounded(mask: np.ndarray, run: bytes, text_of: Callable[[int], bytes]) -> np.ndarray:
    """Return the bitmask without the tokens that would make a number too long.

    mask: int32[words], one bit per token. run: the number at the end of the answer so far. Return
    `mask` itself outside of numbers, and where only a longer number can follow.
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
            return mask  # inside a string, which may have any number of digits
        else:
            kept.append(token_id)
    if not kept:
        return mask
    limited = np.zeros_like(bits)
    limited[kept] = 1
    return np.packbits(limited, bitorder="little").view(np.int32)
