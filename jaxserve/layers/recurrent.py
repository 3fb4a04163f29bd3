"""Recurrent layers: the states that a layer keeps of the sequences of a step."""

from dataclasses import dataclass
from typing import Protocol, Self

import jax.numpy as jnp
from jaxtyping import Array, Int32

from jaxserve.api.caches import Recurrent


class States(Protocol):
    """The states of one layer, one for each sequence of a step.

    The tokens of a step are those of its sequences, one sequence after the other. query_starts:
    where each begins, and where the last ends. row_sequences: the sequence of each token; that of
    padding is one more than there are.
    """

    @property
    def query_starts(self) -> Int32[Array, " sequences_and_one"]:
        """The first token of each sequence, and the end of the last."""
        ...

    @property
    def row_sequences(self) -> Int32[Array, " tokens"]:
        """The sequence of each token."""
        ...

    def read(self) -> tuple[Array, ...]:
        """Return the arrays of the states before this step; zeros where a sequence begins."""
        ...

    def write(self, states: tuple[Array, ...]) -> Self:
        """Return the cache with the states after this step."""
        ...


@dataclass(frozen=True)
class WholeSequence:
    """States of a forward pass over one whole sequence: none before it, none kept."""

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
