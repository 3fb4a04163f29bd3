"""The devices that an engine is planned for: present, or absent and given by name."""

from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from jaxserve.config.engine import EngineOptions
from jaxserve.errors import ConfigError
from jaxserve.execution.memory import usable_bytes
from jaxserve.parallel.sharding import make_mesh
from pallas_kernels.targets import CPU, Target, current_target, find_target
from pallas_kernels.topology import TopologyError, absent_devices


@dataclass(frozen=True, slots=True)
class Hardware:
    """Devices to plan for. target: their kind. is_absent: they are only described."""

    mesh: Mesh
    target: Target
    is_absent: bool

    def usable_bytes(self, options: EngineOptions, *, pool_fraction: float, host_bytes: int) -> int:
        """Return the bytes of each device that an engine may use.

        pool_fraction: share of a GPU's memory that JAX's pool takes in this process.
        host_bytes: free memory of the host.
        """
        devices = list(self.mesh.devices.flat)
        if self.is_absent:
            memory_bytes = self.target.memory_bytes
            return usable_bytes(devices, options.memory_fraction, memory_bytes=memory_bytes)
        usable = usable_bytes(devices, options.memory_fraction, host_bytes=host_bytes)
        if devices[0].platform != "gpu":
            return usable
        # The pool of this process has a fixed size; compute what another start would get.
        return int(usable * options.memory_fraction / pool_fraction)


def find_hardware(name: str | None, num_devices: int, *, expert_parallel: bool = False) -> Hardware:
    """Return devices of a named target, or those of this machine. Raises ConfigError.

    expert_parallel: see make_mesh.
    """
    if name is not None and jax.config.jax_platforms is None:
        # Do not spend time on initializing this machine's accelerators.
        jax.config.update("jax_platforms", "cpu")
    if name is None or name == CPU.name:
        mesh = make_mesh(num_devices, expert_parallel=expert_parallel)
        return Hardware(mesh, current_target(), is_absent=False)
    try:
        target = find_target(name)
        devices = absent_devices(target, num_devices)
        mesh = make_mesh(num_devices, expert_parallel=expert_parallel, devices=devices)
        return Hardware(mesh, target, is_absent=True)
    except (ValueError, TopologyError) as error:
        raise ConfigError(str(error)) from error
