"""The devices that an engine is planned for, at hand or by name."""

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
    """The devices to plan for, what they are, and whether they are absent."""

    mesh: Mesh
    target: Target
    is_absent: bool

    def usable_bytes(self, options: EngineOptions, *, pool_fraction: float, host_bytes: int) -> int:
        """Return what each device has for an engine.

        pool_fraction: the share of a GPU's memory that JAX's pool takes in this process.
        host_bytes: what the host has free.
        """
        devices = list(self.mesh.devices.flat)
        if self.is_absent:
            memory_bytes = self.target.memory_bytes
            return usable_bytes(devices, options.memory_fraction, memory_bytes=memory_bytes)
        usable = usable_bytes(devices, options.memory_fraction, host_bytes=host_bytes)
        if devices[0].platform != "gpu":
            return usable
        # The pool's size is fixed by now; this says what another start would get.
        return int(usable * options.memory_fraction / pool_fraction)


def find_hardware(name: str | None, num_devices: int) -> Hardware:
    """Return devices by the name of what they are; raises ConfigError."""
    if name is not None and jax.config.jax_platforms is None:
        # Nobody needs the hardware of this machine now, and looking for some takes time.
        jax.config.update("jax_platforms", "cpu")
    if name is None or name == CPU.name:
        mesh = make_mesh(num_devices)
        return Hardware(mesh, current_target(), is_absent=False)
    try:
        target = find_target(name)
        mesh = make_mesh(num_devices, devices=absent_devices(target, num_devices))
        return Hardware(mesh, target, is_absent=True)
    except (ValueError, TopologyError) as error:
        raise ConfigError(str(error)) from error
