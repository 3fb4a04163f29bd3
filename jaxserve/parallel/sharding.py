"""Sharding in words: parameters name what their axes hold, one table says where that goes."""

import os
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxserve.errors import ConfigError

TENSOR = "tensor"

# Words that are not listed (embed, head_dim) are replicated.
MESH_AXIS = {"heads": TENSOR, "kv_heads": TENSOR, "ffw": TENSOR, "vocab": TENSOR}

# A head cannot be cut and ffw pads badly; a vocabulary that does not divide is merely replicated.
_MAY_REPLICATE = frozenset({"vocab"})


def make_mesh(tensor_parallel_size: int, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh of the first `tensor_parallel_size` of `devices` (default: all there are).

    Raises ConfigError where there are fewer, or none that JAX can use.
    """
    try:
        found = list(jax.devices() if devices is None else devices)
    except (RuntimeError, AssertionError) as error:  # the latter where a plugin is not installed
        wanted = os.environ.get("JAX_PLATFORMS", "")
        raise ConfigError(
            f"JAX finds no device to run on (JAX_PLATFORMS is {wanted!r}): look at the driver, and"
            " whether jaxserve is installed with the extra for this accelerator"
        ) from error
    if tensor_parallel_size > len(found):
        raise ConfigError(
            f"tensor_parallel_size is {tensor_parallel_size}, but only {len(found)}"
            f" {found[0].platform} device{'s are' if len(found) > 1 else ' is'} visible"
        )
    # Auto: XLA places the collectives; the kernels sit in an explicit shard_map.
    chosen = np.array(found[:tensor_parallel_size])
    return Mesh(chosen, (TENSOR,), axis_types=(AxisType.Auto,))


def partition_spec(axes: Sequence[str], shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """Return how an array of `shape` whose dimensions hold `axes` is laid over `mesh`.

    Raises ConfigError where heads, kv_heads or ffw are not a multiple of the mesh axis.
    """
    places: list[str | None] = []
    for word, size in zip(axes, shape, strict=True):
        place = MESH_AXIS.get(word)
        parts = 1 if place is None else mesh.shape.get(place, 1)
        if size % parts and word not in _MAY_REPLICATE:
            raise ConfigError(
                f"tensor_parallel_size must divide the model's {word} ({size}), got {parts}"
            )
        places.append(place if parts > 1 and size % parts == 0 else None)
    return PartitionSpec(*places)


def named_sharding(axes: Sequence[str], shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Return `partition_spec` bound to its mesh."""
    return NamedSharding(mesh, partition_spec(axes, shape, mesh))
