"""Folders of compiled programs, to load instead of compiling on every machine.

A folder contains one file per program and a manifest with the key and each file's SHA-256. The key
lists everything that must match between the compiling and the running machine. JAX's own
compilation cache cannot be filled on a machine without the device, because its keys include the
driver's version; see docs/compile.md.

The files are pickles with machine code inside: loading one runs its author's code. Trust a folder
as you trust the code you install.
"""

import functools
import hashlib
import json
import os
import pickle
import platform
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import jax
from jax.experimental import serialize_executable

from jaxserve import __version__
from jaxserve.errors import ConfigError
from jaxserve.execution.context import StepContext
from jaxserve.execution.programs import Program, name_of

type Key = Mapping[str, str | int]

MANIFEST = "manifest.json"
_FORMAT = 1
# Packages whose source is part of the key.
_SOURCES = ("execution", "layers", "models", "quantization", "parallel")
_SUFFIXES = {".py", ".c", ".h"}
_ROOT = Path(__file__).parents[1]
# Distributions that contain each platform's compiler and runtime; installed ones count.
_RUNTIMES = {
    "gpu": (
        "jax-cuda13-pjrt",
        "jax-cuda13-plugin",
        "nvidia-cudnn-cu13",
        "jax-cuda12-pjrt",
        "jax-cuda12-plugin",
        "nvidia-cudnn-cu12",
    ),
    "tpu": ("libtpu",),
}


def executable_key(
    context: StepContext,
    *,
    num_pages: tuple[int, ...],
    num_slots: int,
    quantization: str | None,
    packed: str | None,
) -> Key:
    """Return everything that a compiled program depends on, except its shape."""
    device = context.mesh.devices.flat[0]
    config = context.attention.configs[0]
    return {
        "format": _FORMAT,
        "jaxserve": __version__,
        "sources": _source_hash(),
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "runtime": _runtime(device.platform),
        "target": context.attention.target.name,
        "device": device.device_kind,
        "tensor_parallel_size": context.mesh.size,
        "mesh": " ".join(f"{axis} {size}" for axis, size in context.mesh.shape.items()),
        "model": f"{context.model.model_type} {_digest(repr(context.model).encode())[:16]}",
        "dtype": config.dtype,
        "quantization": quantization or "none",
        "packed": packed or "none",
        "kv_cache_dtype": config.cache_dtype,
        "attention": context.attention.backend,
        "max_model_len": context.rope_length,
        "max_logprobs": context.sampling.max_logprobs,
        "logprobs_mode": context.sampling.logprobs_mode,
        "logits_processors": context.sampling.processors.key,
        "slots": num_slots,
        "block_size": config.page_size,
        "pages": num_pages[context.caches.main_pool],
        "cache": f"{num_pages} {_digest(repr(context.caches).encode())[:16]}",
        "xla_flags": _flags(),
    }


class ExecutableWriter:
    """Writes programs into a new folder; `close` completes it."""

    def __init__(self, folder: Path, key: Key) -> None:
        """Create the folder; raises ConfigError if it exists and is not empty."""
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"out must be an empty or a new folder, got {folder}")
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._folder = folder
        self._key = key
        self._programs: dict[str, dict[str, str]] = {}

    def add(self, program: Program, compiled: jax.stages.Compiled) -> int:
        """Write a program; return its size in bytes."""
        name = name_of(program)
        content = pickle.dumps(serialize_executable.serialize(compiled))
        _write(self._folder / f"{name}.bin", content)
        self._programs[name] = {"file": f"{name}.bin", "sha256": _digest(content)}
        return len(content)

    def close(self) -> None:
        """Write the manifest; a folder without one is invalid."""
        manifest = {"key": self._key, "programs": self._programs}
        _write(self._folder / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")


@dataclass(frozen=True)
class ExecutableFolder:
    """Folder written by ExecutableWriter."""

    path: Path
    key: Key
    programs: Mapping[str, Mapping[str, str]]

    @staticmethod
    def open(path: Path) -> "ExecutableFolder":
        """Read a folder's manifest, but no program.

        Raises ConfigError if there is no valid manifest, or if everyone may write to the folder.
        """
        _refuse_writable(path)
        content = _read(path / MANIFEST)
        try:
            manifest = json.loads(content)
            return ExecutableFolder(path, manifest["key"], manifest["programs"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"executables: {path / MANIFEST} is not a manifest") from error

    def difference(self, key: Key) -> str | None:
        """Return the first difference between the folder's key and `key`, None if equal."""
        for name in {**key, **self.key}:
            there, here = self.key.get(name), key.get(name)
            if there != here:
                return f"{name} is {there!r} there and {here!r} here"
        return None

    def load(self, program: Program, mesh: jax.sharding.Mesh) -> jax.stages.Compiled | None:
        """Load a program onto the devices of `mesh`; return None if the folder lacks it.

        Raises ConfigError if the file does not match the manifest, or if everyone may write to it.
        """
        entry = self.programs.get(name_of(program))
        if entry is None:
            return None
        # Use the file name only: a manifest must not point outside the folder.
        path = self.path / Path(entry["file"]).name
        content = _read(path)
        if _digest(content) != entry["sha256"]:
            raise ConfigError(f"executables: {path} is not the file that its manifest describes")
        serialized, in_tree, out_tree = pickle.loads(content)  # noqa: S301  (trusted like code)
        compiled: jax.stages.Compiled = serialize_executable.deserialize_and_load(
            serialized, in_tree, out_tree, execution_devices=list(mesh.devices.flat)
        )
        return compiled


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o644)


def _read(path: Path) -> bytes:
    _refuse_writable(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"executables: {path} cannot be read") from error


def _refuse_writable(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"executables: {path} does not exist") from error
    if mode & stat.S_IWOTH:
        raise ConfigError(
            f"executables: {path} is writable by everyone, and jaxserve would execute its programs."
            f" Check its content, then run chmod o-w {path}"
        )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@functools.cache
def _source_hash() -> str:
    """Return a hash of the source that programs depend on, kernels included."""
    kernels = _ROOT.parent / "pallas_kernels"
    roots = [kernels, *(_ROOT / name for name in _SOURCES)]
    files = [file for root in roots for file in (sorted(root.rglob("*.[pch]*")) or [root])]
    files = [file for file in files if file.suffix in _SUFFIXES]
    return _digest(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files))[:16]


def _runtime(platform_name: str) -> str:
    """Return the versions of the compiler and runtime packages, or the kind of CPU."""
    if platform_name == "cpu":
        return f"{platform.machine()} {_digest(_cpu_features().encode())[:16]}"
    found = []
    for name in _RUNTIMES[platform_name]:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def _cpu_features() -> str:
    """Return this CPU's instruction sets, which XLA compiles for, or its name if unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _flags() -> str:
    names = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
    return " ".join(sorted(flag for name in names for flag in os.environ.get(name, "").split()))
