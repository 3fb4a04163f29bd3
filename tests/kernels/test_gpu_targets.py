"""NVIDIA GPUs that are not there can be compiled for, by their descriptions."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels.gpu_targets import gpu_target_config
from pallas_kernels.targets import TARGETS, target_of

GPUS = tuple(name for name, target in TARGETS.items() if target.platform == "cuda")

needs_cuda_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="the CUDA 13 plugin of jax is not installed",
)


@needs_cuda_plugin
@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("name", GPUS)
def test_matmul_compiles_for_a_gpu_that_is_not_there(name: str, num_devices: int) -> None:
    topology = topologies.get_topology_desc(
        platform="cuda",
        topology_name=name,
        topology=f"1x{num_devices}x1",
        target_config=gpu_target_config(name),
    )
    assert len(topology.devices) == num_devices
    assert target_of(topology.devices[0]) == TARGETS[name]
    mesh = topologies.make_mesh(topology, (num_devices,), ("x",))
    x = jax.ShapeDtypeStruct(
        (256, 512), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(None, "x"))
    )
    y = jax.ShapeDtypeStruct(
        (512, 256), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec("x"))
    )
    product = jax.jit(jnp.matmul, out_shardings=NamedSharding(mesh, PartitionSpec()))
    text = product.lower(x, y).compile().as_text()
    assert text is not None
    assert ("all-reduce" in text) == (num_devices > 1)


def test_every_gpu_target_has_a_description() -> None:
    for name in GPUS:
        assert f"core_count: {TARGETS[name].cores}\n" in gpu_target_config(name)


def test_what_is_no_nvidia_gpu_has_no_description() -> None:
    with pytest.raises(ValueError, match=r"one of a100, h100, h200, b200, got 'v6e'"):
        gpu_target_config("v6e")
