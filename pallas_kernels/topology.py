"""Absent devices: JAX devices to compile for without the hardware.

They can be put into a mesh, and programs can be lowered and compiled for them, but they hold no
arrays and run nothing. The compiler for a target comes with JAX's plugin, which works without the
hardware.
"""

import os

import jax
from jax.experimental import topologies

from pallas_kernels.gpu_targets import gpu_target_config
from pallas_kernels.targets import Target

# Packages with the compiler of each platform.
PLUGINS = {"cuda": "jax[cuda13] or jax[cuda12]", "tpu": "jax[tpu]"}
_GPUS_PER_HOST = 8
# Compute capability that this process compiles for; empty before the first use. jaxlib 0.11.2 uses
# that of a process's first Mosaic kernel for all later ones: some then fail to compile, others are
# compiled for the wrong architecture.
_capabilities: set[str] = set()


class TopologyError(RuntimeError):
    """JAX cannot describe the requested devices: a plugin is missing, or there are too many."""


# Topology of each slice, and of one of its hosts, as offered by Google Cloud. A request for fewer
# devices gets the first ones of the next larger slice.
_FLAT = (
    ("1x1", (1, 1, 1)),
    ("2x2", (2, 2, 1)),
    ("2x4", (2, 4, 1)),
    ("4x4", (2, 4, 1)),
)
_CUBIC = (
    ("1x1x1", (1, 1, 1)),
    ("2x2x1", (2, 2, 1)),
    ("2x2x2", (2, 2, 1)),
    ("2x2x4", (2, 2, 1)),
)
_SLICES = {"v4": _CUBIC, "v5e": _FLAT, "v5p": _CUBIC, "v6e": _FLAT, "v7x": _CUBIC}
# libtpu's names where they differ from ours. The two cores of a v4 chip are one device in
# "megacore" mode, the default on hardware; for v5p libtpu selects it by itself.
_NAMES = {"v7x": "tpu7x"}
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}


def absent_devices(target: Target, count: int) -> list[jax.Device]:
    """Return `count` devices of a target to compile for, with or without the hardware.

    Raises TopologyError if JAX's plugin for the target is not installed, if no slice has that many
    devices, if the target has no description, or if this process has already compiled for a GPU
    with another compute capability.
    """
    if target.platform == "tpu" and target.name in _SLICES:
        return _tpus(target, count)
    if target.platform == "cuda":
        return _gpus(target, count)
    raise TopologyError(f"there is no description of {target.name} to compile for")


def _tpus(target: Target, count: int) -> list[jax.Device]:
    # Without these, libtpu queries the cloud's metadata server, which hangs elsewhere, and allows
    # one process at a time, which is needed to run on a TPU but not to compile for one.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    name = _NAMES.get(target.name, target.name)
    options = _OPTIONS.get(target.name, {})
    largest = 0
    for layout, host in _SLICES[target.name]:
        try:
            found = topologies.get_topology_desc(
                platform="tpu",
                topology_name=f"{name}:{layout}",
                chips_per_host_bounds=host,
                **options,
            ).devices
        except RuntimeError as error:
            if "not installed" not in str(error):
                raise
            raise _missing(target) from error
        largest = len(found)
        if largest >= count:
            return found[:count]
    raise TopologyError(f"{target.name} is known in slices of up to {largest}, got {count}")


def _gpus(target: Target, count: int) -> list[jax.Device]:
    try:
        config = gpu_target_config(target.name)
    except ValueError as error:
        raise TopologyError(str(error)) from error
    for other in _capabilities - {target.architecture}:
        raise TopologyError(
            f"this process compiles for GPUs of compute capability {other}, and cannot for"
            f" {target.name} as well: take another process"
        )
    hosts, rest = divmod(count, _GPUS_PER_HOST)
    if hosts and rest:
        raise TopologyError(
            f"more than {_GPUS_PER_HOST} GPUs must be whole hosts of {_GPUS_PER_HOST}, got {count}"
        )
    layout = f"{hosts}x{_GPUS_PER_HOST}x1" if hosts else f"1x{count}x1"
    try:
        found = topologies.get_topology_desc(
            platform="cuda", topology_name=target.name, topology=layout, target_config=config
        ).devices
    except NotImplementedError as error:
        raise _missing(target) from error
    _capabilities.add(target.architecture)
    return found


def _missing(target: Target) -> TopologyError:
    return TopologyError(
        f"compiling for {target.name} needs its compiler: install {PLUGINS[target.platform]}"
    )
