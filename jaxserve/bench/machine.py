"""What a measurement was made on."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import jax

from jaxserve import __version__


def describe_machine() -> dict[str, str | int]:
    """Return the processor, the devices and the versions that a result depends on."""
    devices = jax.devices()
    return {
        "cpu": _cpu_name(),
        "cpu_count": len(os.sched_getaffinity(0)),
        "device": devices[0].device_kind,
        "device_count": len(devices),
        "python": platform.python_version(),
        "jax": version("jax"),
        "jaxserve": __version__,
    }


def _cpu_name() -> str:
    """Return the processor's own name where the system tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
