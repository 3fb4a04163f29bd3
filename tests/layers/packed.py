"""Packed sequences for tests of recurrences."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxserve.layers.recurrence import CHUNK


@dataclass(frozen=True)
class Packed:
    """Rows of sequences of these lengths, one after the other, and padding up to `num_tokens`."""

    lengths: tuple[int, ...]
    num_tokens: int

    @property
    def query_starts(self) -> Array:
        return jnp.array([0, *np.cumsum(self.lengths)], jnp.int32)

    @property
    def row_sequences(self) -> Array:
        owners = np.repeat(np.arange(len(self.lengths)), self.lengths)
        padding = np.full(self.num_tokens - len(owners), len(self.lengths))
        return jnp.asarray(np.concatenate([owners, padding]), jnp.int32)

    def read(self) -> tuple[Array, ...]:
        raise NotImplementedError

    def write(self, states: tuple[Array, ...]) -> Any:
        raise NotImplementedError

    def slices(self) -> list[slice]:
        stops = np.cumsum(self.lengths)
        return [
            slice(stop - length, stop) for stop, length in zip(stops, self.lengths, strict=True)
        ]


DECODE = Packed((1, 1, 1), 3)
MIXED = Packed((1, 2 * CHUNK, 0, 7, 1, CHUNK + 1, 2, 0), 400)
BATCHES = [
    Packed((1,), 1),
    DECODE,
    Packed((3 * CHUNK + 5,), 3 * CHUNK + 5),
    MIXED,
    Packed((1, 1, 1, 0), 16),
    Packed((2, 3, 2, 2), 16),
    Packed((9 * CHUNK, 10), 1000),  # more than a block of chunks
]
