"""Descriptions of NVIDIA GPUs for XLA, to compile for GPUs that this machine does not have.

`jax.experimental.topologies.get_topology_desc(platform="cuda", ..., target_config=TEXT)` takes a
GpuTargetConfigProto as text. Values are those that the devices report, as openxla/xla keeps them
(xla/backends/gpu/target_config/specs: h100_sxm, h200, b200 and a100_sxm_80), and the CUDA C++
Programming Guide's table of technical specifications per compute capability.
"""

from dataclasses import dataclass

from pallas_kernels.targets import find_target


@dataclass(frozen=True, kw_only=True)
class _Chip:
    """Properties in which the GPUs differ. Memory sizes in bytes, bandwidth in bytes/s."""

    description: str  # as the driver names the device
    extension: str  # of the compute capability: whether "a" features such as wgmma may be used
    memory: int
    bandwidth: int
    l2_cache: int
    clock_ghz: float
    fpus_per_core: int
    shared_memory_per_core: int


_HOPPER_SHARED_MEMORY = 228 * 1024

_CHIPS = {
    "a100": _Chip(
        description="NVIDIA A100-SXM4-80GB",
        extension="NONE",
        memory=85_100_068_864,
        bandwidth=2_039_040_000_000,
        l2_cache=40 << 20,
        clock_ghz=1.41,
        fpus_per_core=64,
        shared_memory_per_core=164 * 1024,
    ),
    "h100": _Chip(
        description="NVIDIA H100 80GB HBM3",
        extension="ACCELERATED_FEATURES",
        memory=84_942_979_072,
        bandwidth=3_352_320_000_000,
        l2_cache=50 << 20,
        clock_ghz=1.98,
        fpus_per_core=128,
        shared_memory_per_core=_HOPPER_SHARED_MEMORY,
    ),
    "h200": _Chip(
        description="NVIDIA H200",
        extension="ACCELERATED_FEATURES",
        memory=151_397_597_184,
        bandwidth=4_800_000_000_000,
        l2_cache=50 << 20,
        clock_ghz=1.98,
        fpus_per_core=128,
        shared_memory_per_core=_HOPPER_SHARED_MEMORY,
    ),
    "b200": _Chip(
        description="NVIDIA B200",
        extension="ACCELERATED_FEATURES",
        memory=191_514_411_008,
        bandwidth=7_672_320_000_000,
        l2_cache=132_644_864,
        clock_ghz=1.965,
        fpus_per_core=128,
        shared_memory_per_core=_HOPPER_SHARED_MEMORY,
    ),
}

# Bytes of shared memory that CUDA reserves per thread block.
_RESERVED_SHARED_MEMORY = 1024

_CUDA = "13.0.0"
_CUDNN = (9, 10, 0)


def gpu_target_config(name: str) -> str:
    """Return the GpuTargetConfigProto of target `name`, as text.

    Raises ValueError, listing the names, unless it is an NVIDIA GPU of `targets.TARGETS`.
    """
    if name not in _CHIPS:
        raise ValueError(f"target must be one of {', '.join(_CHIPS)}, got {name!r}")
    chip, target = _CHIPS[name], find_target(name)
    major, minor = target.architecture.split(".")
    suffix = "a" if chip.extension == "ACCELERATED_FEATURES" else ""
    cudnn = ".".join(map(str, _CUDNN))
    return f"""\
gpu_device_info {{
  name: "{chip.description}"
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability {target.architecture}{suffix}"
  cuda_compute_capability {{
    major: {major} minor: {minor} feature_extension: {chip.extension}
  }}
  core_count: {target.cores}
  fpus_per_core: {chip.fpus_per_core}
  clock_rate_ghz: {chip.clock_ghz}
  device_memory_size: {chip.memory}
  memory_bandwidth: {chip.bandwidth}
  l2_cache_size: {chip.l2_cache}
  shared_memory_per_core: {chip.shared_memory_per_core}
  shared_memory_per_block: {48 * 1024}
  shared_memory_per_block_optin: {chip.shared_memory_per_core - _RESERVED_SHARED_MEMORY}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  device_address_bits: 64
  driver_version: "{_CUDA}"
  runtime_version: "{_CUDA}"
  compile_time_toolkit_version: "{_CUDA}"
  dnn_version: "{cudnn}"
}}
platform_name: "CUDA"
dnn_version_info {{ major: {_CUDNN[0]} minor: {_CUDNN[1]} patch: {_CUDNN[2]} }}
device_description_str: "{chip.description}"
"""
