"""Describe the machine of a measurement in this process, including devices."""

import jax

from jaxserve.bench.environment import describe_host


def describe_machine() -> dict[str, str | int]:
    """Return the processor, the devices and the versions that a result depends on."""
    devices = jax.devices()
    return {
        **describe_host(),
        "device": devices[0].device_kind,
        "device_count": len(devices),
    }
