"""Encode vectors as JSON, base64, bytes, or one bit per number."""

import base64
import sys
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.pooling import Vector
from jaxserve.server.pooling.answers import BytesPlace, EmbeddingsByType
from jaxserve.server.pooling.schema import VectorBody

DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
}


def to_bytes(vector: Vector, *, embed_dtype: str, endianness: str) -> bytes:
    """Return a float32 vector as bytes in another dtype and byte order."""
    numbers = vector.astype(DTYPES[embed_dtype])
    if endianness not in {"native", sys.byteorder}:
        # The dtypes of ml_dtypes have no byte order.
        numbers = numbers.view(f"u{numbers.itemsize}").byteswap()
    return numbers.tobytes()


def to_json(vector: Vector, body: VectorBody) -> list[float] | str:
    """Return a vector for JSON, in the format that the body requests."""
    if body.encoding_format == "float":
        numbers: list[float] = vector.tolist()
        return numbers
    data = to_bytes(vector, embed_dtype=body.embed_dtype, endianness=body.endianness)
    return base64.b64encode(data).decode()


def join_bytes(vectors: Sequence[Vector], body: VectorBody) -> tuple[bytes, list[BytesPlace]]:
    """Return the concatenated bytes of vectors, and the place of each."""
    parts: list[bytes] = []
    places: list[BytesPlace] = []
    start = 0
    for index, vector in enumerate(vectors):
        part = to_bytes(vector, embed_dtype=body.embed_dtype, endianness=body.endianness)
        parts.append(part)
        places.append(
            BytesPlace(
                index=index,
                embed_dtype=body.embed_dtype,
                endianness=body.endianness,
                start=start,
                end=start + len(part),
                shape=vector.shape,
            )
        )
        start += len(part)
    return b"".join(parts), places


def by_type(vectors: Sequence[Vector], types: Sequence[str]) -> EmbeddingsByType:
    """Return vectors in Cohere's types: floats, base64, or one sign bit per number.

    Raises InvalidRequestError if the bits do not fill whole bytes.
    """
    found = EmbeddingsByType()
    if "float" in types:
        found.floats = [vector.tolist() for vector in vectors]
    if "base64" in types:
        found.base64 = [
            base64.b64encode(to_bytes(v, embed_dtype="float32", endianness="little")).decode()
            for v in vectors
        ]
    if not {"binary", "ubinary"}.isdisjoint(types):
        width = len(vectors[0])
        if width % 8:
            raise InvalidRequestError(
                f"embedding_types binary and ubinary need a multiple of 8 dimensions, got {width}",
                param="embedding_types",
            )
        bits = np.packbits(np.stack(vectors) >= 0, axis=1)
        if "ubinary" in types:
            found.ubinary = bits.tolist()
        if "binary" in types:
            # Cohere's `binary` bytes are signed, with an offset of -128.
            found.binary = (bits.astype(np.int16) - 128).tolist()
    return found
