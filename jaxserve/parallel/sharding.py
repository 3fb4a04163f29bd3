"""Sharding plan: maps the named axes of parameters to mesh axes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxserve.errors import ConfigError

# Mesh axes. Parameter axes that map to a missing mesh axis are replicated.
TENSOR, EXPERT = "tensor", "expert"

# Mesh axes of each axis name. Names not listed (embed, head_dim) are replicated. A mesh axis splits
# the first axis of an array that it can: experts, if there are any, before their ffw.
_ALL = (EXPERT, TENSOR)
RULES = (
    ("heads", _ALL),
    ("kv_heads", _ALL),
    ("key_heads", _ALL),
    ("conv_channels", _ALL),
    ("ffw", _ALL),
    ("vocab", _ALL),
    ("experts", (EXPERT,)),
)

# Axes to replicate if they do not divide. Heads cannot be split, and ffw pads badly.
_MAY_REPLICATE = frozenset({"vocab"})


@dataclass(frozen=True)
class ShardingPlan:
    """Mesh, and the mesh axes that each axis name is sharded over."""

    mesh: Mesh
    rules: tuple[tuple[str, tuple[str, ...]], ...] = RULES

    def mesh_axes(self, word: str) -> tuple[str, ...]:
        """Return the mesh axes of an axis name, without those of size 1."""
        return tuple(axis for axis in dict(self.rules).get(word, ()) if self.axis_size(axis) > 1)

    def axis_size(self, axis: str) -> int:
        """Return the number of devices along a mesh axis, 1 if the mesh does not have it."""
        size: int = self.mesh.shape.get(axis, 1)
        return size

    def num_shards(self, word: str) -> int:
        """Return the number of shards of an axis."""
        return prod(self.axis_size(axis) for axis in self.mesh_axes(word))

    def without(self, *words: str) -> "ShardingPlan":
        """Return the plan that replicates these axes."""
        rules = tuple((word, axes) for word, axes in self.rules if word not in words)
        return replace(self, rules=rules)

    def spec(self, axes: Sequence[str], shape: Sequence[int]) -> PartitionSpec:
        """Return the partition spec of an array with these axis names and lengths.

        Raises ConfigError unless heads, kv_heads, ffw and experts divide by their mesh axes.
        """
        words: list[str] = []
        for word, size, split in zip(axes, shape, self._splits(axes), strict=True):
            num_shards = prod(self.axis_size(axis) for axis in split)
            if size % num_shards and word not in _MAY_REPLICATE:
                raise ConfigError(
                    f"tensor_parallel_size must divide the model's {word} ({size}),"
                    f" got {num_shards}"
                )
            words.append("" if size % num_shards else word)
        return self.places(*words)

    def places(self, *words: str) -> PartitionSpec:
        """Return the partition spec of an array whose axes all divide."""
        splits = self._splits(words)
        return PartitionSpec(*(each[0] if len(each) == 1 else each or None for each in splits))

    def _splits(self, words: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the mesh axes of each axis of an array, without those of the axes before it."""
        splits: list[tuple[str, ...]] = []
        for word in words:
            used = [axis for split in splits for axis in split]
            splits.append(tuple(axis for axis in self.mesh_axes(word) if axis not in used))
        return splits

    def sharding(self, axes: Sequence[str], shape: Sequence[int]) -> NamedSharding:
        """Return `spec` as a NamedSharding of the mesh."""
        return NamedSharding(self.mesh, self.spec(axes, shape))


def make_mesh(
    tensor_parallel_size: int,
    *,
    expert_parallel: bool = False,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Return a mesh of the first `tensor_parallel_size` of `devices` (default: all devices).

    expert_parallel: whether each device has whole experts, instead of a part of each. Everything
    else is sharded in the same way.

    Raises ConfigError if there are too few devices, or none that JAX can use.
    """
    try:
        found = list(jax.devices() if devices is None else devices)
    except (RuntimeError, AssertionError) as error:  # AssertionError: plugin not installed
        wanted = os.environ.get("JAX_PLATFORMS", "")
        raise ConfigError(
            f"JAX finds no device to run on (JAX_PLATFORMS is {wanted!r}). Check the driver,"
            " and install jaxserve with the extra for this accelerator"
        ) from error
    if tensor_parallel_size > len(found):
        raise ConfigError(
            f"tensor_parallel_size is {tensor_parallel_size}, but only {len(found)}"
            f" {found[0].platform} device{'s are' if len(found) > 1 else ' is'} visible"
        )
    # Auto: XLA inserts the collectives; kernels use an explicit shard_map.
    chosen = np.array(found[:tensor_parallel_size])
    return Mesh(chosen, (EXPERT if expert_parallel else TENSOR,), axis_types=(AxisType.Auto,))
