"""State shared by the layers of one forward pass."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace

from jaxtyping import Array, Int

from jaxserve.layers.attention import Attend
from jaxserve.layers.linear import Rows
from jaxserve.layers.rope import Rope, rotation
from pallas_kernels.rotary import RopeTable

# Called with every named activation; returns the value to continue with.
type Tap = Callable[[str, Array], Array]


@dataclass(frozen=True, kw_only=True)
class ForwardContext[Cache]:
    """Arguments of a forward pass that every layer receives.

    positions: int32[tokens]. attend: attention over the caches. rows: live tokens and their
    adapters. rope_length: length for dynamic RoPE. observer: the caller's tap, or None. prefix:
    prefix of the names passed to it. layer_input: input of the layer besides the residual stream,
    in families that have one. kept: activations that layers keep for later ones, by keys of the
    family's own.
    """

    positions: Int[Array, " tokens"]
    attend: Attend[Cache]
    rows: Rows
    rope_length: int
    observer: Tap | None = None
    prefix: str = ""
    layer_input: Array | None = None
    kept: dict[Hashable, tuple[Array, ...]] = field(default_factory=dict)
    _tables: dict[tuple[Rope, int], RopeTable] = field(default_factory=dict)

    def rotation(self, rope: Rope, head_dim: int) -> RopeTable:
        """Return cosines and sines at the positions, computed once for all layers."""
        key = (rope, head_dim)
        if key not in self._tables:
            self._tables[key] = rotation(rope, head_dim, self.positions, length=self.rope_length)
        return self._tables[key]

    def tap(self, name: str, value: Array) -> Array:
        """Pass an activation to the observer; return the value to continue with."""
        return value if self.observer is None else self.observer(self.prefix + name, value)

    def under(self, part: str) -> "ForwardContext[Cache]":
        """Return the context of a submodule, with `part` appended to the prefix."""
        return self if self.observer is None else replace(self, prefix=f"{self.prefix}{part}.")
