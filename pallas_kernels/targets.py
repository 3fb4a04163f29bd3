"""Accelerators by name: the targets that kernels are compiled for.

JAX can compile for GPUs and TPUs that this machine does not have, given their description:
`topology.absent_devices` creates devices that can be compiled for, but run nothing.
"""

import os
from dataclasses import dataclass, replace

import jax

# Environment variable with the name of a target to simulate on a CPU, used by tests.
SIMULATE = "PALLAS_KERNELS_SIMULATE"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of accelerator; all numbers are per JAX device.

    cores: number of streaming multiprocessors or TensorCores. bandwidth (bytes/s) and flops
    (bfloat16 FLOP/s): the vendor's figures; 0 if unknown. architecture: compute capability, such as
    "9.0", or generation of a TPU. is_simulated: whether kernels run in Pallas' interpret mode on a
    CPU.
    """

    name: str
    platform: str  # "cpu", "cuda" or "tpu"
    architecture: str
    cores: int
    memory_bytes: int = 0
    bandwidth: float = 0.0
    flops: float = 0.0
    is_simulated: bool = False

    def simulated(self) -> "Target":
        """Return this target, simulated on a CPU."""
        return replace(self, is_simulated=True)


_GB = 10**9
_GIB = 1 << 30


def _gpu(name: str, architecture: str, cores: int, gb: int, tbs: float, tflops: float) -> Target:
    return Target(
        name=name,
        platform="cuda",
        architecture=architecture,
        cores=cores,
        memory_bytes=gb * _GB,
        bandwidth=tbs * 1e12,
        flops=tflops * 1e12,
    )


def _tpu(generation: str, cores: int, gib: int, gbs: int, tflops: float) -> Target:
    return Target(
        name=generation,
        platform="tpu",
        architecture=generation,
        cores=cores,
        memory_bytes=gib * _GIB,
        bandwidth=gbs * 1e9,
        flops=tflops * 1e12,
    )


TARGETS = {
    target.name: target
    for target in (
        _gpu("h100", "9.0", 132, 80, 3.35, 989),
        _gpu("h200", "9.0", 132, 141, 4.8, 989),
        _gpu("b200", "10.0", 148, 180, 8.0, 2250),
        _gpu("a100", "8.0", 108, 80, 2.04, 312),
        _tpu("v4", 1, 32, 1228, 275),
        _tpu("v5e", 1, 16, 819, 197),
        _tpu("v5p", 1, 95, 2765, 459),
        _tpu("v6e", 1, 32, 1640, 918),
        _tpu("v7x", 1, 96, 3690, 1153),
    )
}

CPU = Target(name="cpu", platform="cpu", architecture="cpu", cores=os.cpu_count() or 1)

# JAX's device kinds (prefixes), with the name of their target.
_KINDS = {
    "NVIDIA H100": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
    "NVIDIA A100": "a100",
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5p": "v5p",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "v7x",
}


def target_of(device: jax.Device) -> Target:
    """Return the target of `device`; for an unknown kind, one with what JAX reports about it."""
    kind, platform = device.device_kind, device.platform
    if platform == "cpu":
        return CPU
    # Longest prefix first: "TPU v5 lite" is not a "TPU v5".
    for prefix in sorted(_KINDS, key=len, reverse=True):
        if kind.startswith(prefix):
            return TARGETS[_KINDS[prefix]]
    if platform in {"gpu", "cuda"}:
        return Target(
            name=kind,
            platform="cuda",
            architecture=str(device.compute_capability),
            cores=int(device.core_count),
        )
    return Target(name=kind, platform=platform, architecture=kind, cores=1)


def current_target() -> Target:
    """Return the target that JAX runs on.

    On a CPU with PALLAS_KERNELS_SIMULATE=NAME, return that target, simulated. Raises ValueError if
    NAME is unknown.
    """
    target = target_of(jax.devices()[0])
    simulated = os.environ.get(SIMULATE)
    if simulated and target.platform == "cpu":
        return find_target(simulated).simulated()
    return target


def find_target(name: str) -> Target:
    """Return a target by name. Raises ValueError, listing the names, if it is unknown."""
    if name not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {name!r}")
    return TARGETS[name]
