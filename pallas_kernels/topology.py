"""Devices that are not there: what JAX compiles for when the hardware is absent.

They go into a mesh, and programs are lowered and compiled for them; they hold and run nothing.
XLA's compiler for a target comes with JAX's plugin for it, which works without its hardware.
"""

import os

import jax
from jax.experimental import topologies

from pallas_kernels.gpu_targets import gpu_target_config
from pallas_kernels.targets import Target

# What to install for the compiler of a platform.
PLUGINS = {"cuda": "jax[cuda13] or jax[cuda12]", "tpu": "jax[tpu]"}
_GPUS_PER_HOST = 8
# The compute capability this process compiles for, once it does. jaxlib 0.11.2 hands ptxas that of
# a process's first Mosaic kernel for all others too: some fail, some come out of the wrong kind.
_capabilities: set[str] = set()


class TopologyError(RuntimeError):
    """JAX cannot describe the devices asked for: a plugin is missing, or there are too many."""


# Chips of a slice and of each of its hosts, as Google Cloud rents them: a smaller request takes
# the first devices of the next larger slice.
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
# libtpu's own words where they are not ours. A v4 chip has two cores that count as one device in
# "megacore", which is how such chips run unless someone asks otherwise; v5p has it by default.
_NAMES = {"v7x": "tpu7x"}
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}


def absent_devices(target: Target, count: int) -> list[jax.Device]:
    """Return `count` devices of a target to compile for, whether this machine has them or not.

    Raises TopologyError where JAX's plugin for the target is not installed, where there are no
    slices that large, for a target without a description, and for a second kind of GPU in one
    process.
    """
    if target.platform == "tpu" and target.name in _SLICES:
        return _tpus(target, count)
    if target.platform == "cuda":
        return _gpus(target, count)
    raise TopologyError(f"there is no description of {target.name} to compile for")


def _tpus(target: Target, count: int) -> list[jax.Device]:
    # libtpu would ask the cloud's metadata server what this machine is, and wait for no answer; and
    # keep out a second process, which is right for those who use a TPU and not for its compiler.
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
