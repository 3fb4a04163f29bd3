"""Decode large JSON bodies without blocking other threads.

A decoder holds the GIL throughout: for 0.4 s on 15 MB of `[[],[],...`, and for another 0.1 s to
free the result. So the contents of a long body are first counted with numpy, slice by slice. A body
within the limits is then decoded in pieces.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import numpy as np

from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.schema.literals import check_schemas, read_float
from jaxserve.frontend.schema.parsing import show

# Limits of a body, above the largest legitimate ones: 4096 messages with calls have 25,000 lists
# and objects and 100,000 strings, and 2048 prompts of 512 ids have 1,050,624 values. Validating
# that much blocks other threads for up to 50 ms.
LIMITS: Mapping[str, int] = {
    "lists and objects": 100_000,
    "strings": 200_000,
    "values": 1_500_000,
}
MAX_DEPTH = 256
# Bytes to decode at once, in about a millisecond.
PIECE_BYTES = 2**16
# Bytes to count at once.
SLICE_BYTES = 2**18
# Levels of nesting that are decoded in pieces; deeper values are decoded whole.
MAX_LEVELS = 6
MAX_NAME_BYTES = 64

QUOTE, COLON, COMMA = b'":,'
OPENINGS, CLOSINGS = b"[{", b"]}"
# For each byte, whether it is structural outside of strings, and its change of the nesting depth.
IS_MARK = np.isin(np.arange(256), [*OPENINGS, *CLOSINGS, COLON, COMMA])
CHANGES = np.isin(np.arange(256), [*OPENINGS]).astype(np.int8) - np.isin(
    np.arange(256), [*CLOSINGS]
)

_values = msgspec.json.Decoder(Any, float_hook=read_float)
_fields = msgspec.json.Decoder(dict[str, Any], float_hook=read_float)
_items = msgspec.json.Decoder(list[Any], float_hook=read_float)
_raw_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_raw_items = msgspec.json.Decoder(list[msgspec.Raw])

type Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]
type Integers = np.ndarray[tuple[int], np.dtype[np.int64]]


class Marks(NamedTuple):
    """The structure of a slice of JSON text, outside of strings.

    places: positions of brackets, braces, colons and commas, ascending. codes: those bytes. depths:
    nesting depth after each. quotes: positions where strings begin and end.
    """

    places: Integers
    codes: Bytes
    depths: Integers
    quotes: Integers


def decode_json(body: bytes) -> Any:
    """Return the value of JSON text.

    Raises InvalidRequestError above the limits, and ValueError or RecursionError for invalid JSON.
    """
    if len(body) <= PIECE_BYTES:
        return _values.decode(body)
    check_size(body)
    return _decode(body, MAX_LEVELS)


def check_size(body: bytes) -> None:
    """Raise InvalidRequestError, naming the field at fault, if a body exceeds a limit."""
    counts = dict.fromkeys(LIMITS, 0)
    name_end = 0  # end of the name of the current field
    for places, codes, depths, quotes in _marks(body):
        names = places[(codes == COLON) & (depths == 1)]
        found = {
            "lists and objects": places[CHANGES[codes] > 0],
            "strings": quotes[::2],
            "values": places[codes == COMMA],
        }
        if depths.size and depths.max() > MAX_DEPTH:
            deepest = places[depths > MAX_DEPTH]
            raise _too_much(body, names, name_end, deepest[0], f"{MAX_DEPTH} levels of nesting")
        for what, at in found.items():
            room = LIMITS[what] - counts[what]
            if at.size > room:
                raise _too_much(body, names, name_end, at[room], f"{LIMITS[what]} {what}")
            counts[what] += at.size
        if names.size:
            name_end = int(names[-1])


def _too_much(
    body: bytes, names: Integers, name_end: int, place: int, limit: str
) -> InvalidRequestError:
    """Return the error for the field at a place. names: ends of the field names in the slice."""
    before = names[names < place]
    name = _name(body, int(before[-1]) if before.size else name_end)
    what = "the body" if name is None else f"{name} makes the body too large: it"
    return InvalidRequestError(
        f"{what} must have at most {limit}, got more", param=name, code="too_large"
    )


def _name(body: bytes, end: int) -> str | None:
    """Return the name of the field whose colon is at `end`; None if it is not found."""
    *_, name, rest = (b"", *body[max(0, end - MAX_NAME_BYTES) : end].rsplit(b'"', 2)[-2:])
    return name.decode(errors="replace") if name and not rest.strip() else None


def _decode(raw: bytes, levels: int) -> Any:
    """Return the value of JSON text, decoding long values in pieces up to `levels` deep."""
    raw = raw.strip()
    if len(raw) <= PIECE_BYTES or not levels or raw[0] not in OPENINGS:
        return _values.decode(raw)
    is_object = raw[:1] == b"{"
    items: list[Any] = []
    fields: dict[str, Any] = {}
    for start, stop in _pieces(raw):
        if not raw[start:stop].strip() and stop - start < len(raw) - 2:
            raise ValueError("there is nothing between two commas")
        piece = raw[:1] + raw[start:stop] + raw[-1:]
        is_long = len(piece) > 2 * PIECE_BYTES
        if is_object:
            named: dict[str, Any] = (_raw_fields if is_long else _fields).decode(piece)
            if is_long:
                named = {name: _decode(bytes(value), levels - 1) for name, value in named.items()}
            fields.update(named)
        elif is_long:
            values = _raw_items.decode(piece)
            items.extend(_decode(bytes(value), levels - 1) for value in values)
        else:
            items.extend(_items.decode(piece))
    return fields if is_object else items


def _pieces(raw: bytes) -> Iterator[tuple[int, int]]:
    """Yield the ranges of pieces of a list or object, split at its own commas.

    A piece is at most 2 * PIECE_BYTES long, unless it is a single longer entry.
    """
    cuts = [0]
    for places, codes, depths, _ in _marks(raw):
        commas = places[(codes == COMMA) & (depths == 1)]
        # The last comma in each block of PIECE_BYTES.
        cuts += commas[np.diff(commas // PIECE_BYTES, append=-1) != 0].tolist()
    for before, after in pairwise([*cuts, len(raw) - 1]):
        yield before + 1, after


def _marks(text: bytes) -> Iterator[Marks]:
    """Yield the structure of a text, slice by slice."""
    start = depth = 0
    is_inside = 0
    while start < len(text):
        part = text[start : start + SLICE_BYTES]
        if b"\\" in part:
            part = part.replace(rb"\\", b"__").replace(rb"\"", b"__")
            if part.endswith(b"\\") and len(part) > 1:
                # Move it to the next slice, which has the escaped character.
                part = part[:-1]
        if not is_inside or b'"' in part:
            codes = np.frombuffer(part, np.uint8)
            is_quote = codes == QUOTE
            inside = np.bitwise_xor.accumulate(is_quote.view(np.uint8)) ^ is_inside
            is_inside = int(inside[-1])
            places = np.flatnonzero(IS_MARK[codes] > inside)
            marks = codes[places]
            depths = np.cumsum(CHANGES[marks], dtype=np.int64) + depth
            depth = int(depths[-1]) if depths.size else depth
            yield Marks(places + start, marks, depths, np.flatnonzero(is_quote) + start)
        start += len(part)


def decode(body: bytes) -> dict[str, Any]:
    """Return a JSON object, refusing NaN, infinities, lone surrogates and invalid UTF-8.

    In schemas, refuse numbers that a double cannot represent exactly. Raises InvalidRequestError,
    also above the limits.
    """
    try:
        fields = decode_json(body)
    except InvalidRequestError:  # a subclass of ValueError
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(
            "the body is not JSON: it must be UTF-8, of finite numbers, and not nested too deep",
            param=None,
            code="invalid_json",
        ) from error
    if not isinstance(fields, dict):
        raise InvalidRequestError(
            f"the body must be a JSON object, got {show(fields)}", param=None, code="invalid_json"
        )
    check_schemas(fields)
    return fields
