"""States of recurrent layers, one per sequence of a step."""

from dataclasses import dataclass
from typing import Protocol, Self

import jax.numpy as jnp
from jaxtyping import Array, Int32

from jaxserve.api.caches import Recurrent


class States(Protocol):
    """States of one layer, one per sequence of a step.

    The tokens of a step are grouped by sequence. row_sequences of padding is the number of
    sequences, one past the last index.
    """

    @property
    def query_starts(self) -> Int32[Array, " sequences_and_one"]:
        """First token of each sequence, followed by the end of the last one."""
        ...

    @property
    def row_sequences(self) -> Int32[Array, " tokens"]:
        """Sequence of each token."""
        ...

    def read(self) -> tuple[Array, ...]:
        """Return the state arrays before this step; zeros for new sequences."""
        ...

    def write(self, states: tuple[Array, ...]) -> Self:
        """Return the cache with the states after this step."""
        ...


@dataclass(frozen=True)
class WholeSequence:
    """States of a forward pass over one whole sequence; starts at zero, stores nothing."""

    spec: Recurrent
    num_tokens: int

    @property
    def query_starts(self) -> Int32[Array, " sequences_and_one"]:
        """See States."""
        return jnp.array([0, self.num_tokens], jnp.int32)

    @property
    def row_sequences(self) -> Int32[Array, " tokens"]:
        """See States."""
        return jnp.zeros(self.num_tokens, jnp.int32)

    def read(self) -> tuple[Array, ...]:
        """See States."""
        return tuple(jnp.zeros((1, *each.shape), each.dtype) for each in self.spec.arrays)

    def write(self, states: tuple[Array, ...]) -> Self:
        """See States."""
        del states
        return self
