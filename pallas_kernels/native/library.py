"""Compilation of C functions for this machine's processor, and their registration with XLA.

Compiling a file takes about a second, once for each version of source, compiler and processor.
Libraries are cached in the folder pallas_kernels/ of the user's cache folder.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

import jax

from pallas_kernels.dispatch import Unsupported

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-Wno-psabi", "-fPIC", "-shared")
TIMEOUT_S = 60

_HEADER = Path(__file__).with_name("xla.h")


@functools.cache
def register(source: Path, functions: tuple[str, ...]) -> None:
    """Compile a C file, and register its functions with XLA as FFI targets of the same names.

    Raises Unsupported, with the reason, if it cannot be compiled or loaded.
    """
    if platform.system() not in {"Linux", "Darwin"}:
        raise Unsupported(f"is compiled on Linux and macOS, not on {platform.system()}")
    try:
        library = _loaded(source, _compiler())
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise Unsupported(f"cannot be compiled here: {error}") from error
    for name in functions:
        handler = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(name, handler, platform="cpu")


def _compiler() -> tuple[str, ...]:
    """Return the command of the C compiler. As in make, CC may be a command with flags."""
    asked = os.environ.get("CC")
    for name, *flags in (shlex.split(asked),) if asked else ([each] for each in COMPILERS):
        found = shutil.which(name)
        if found is not None:
            return found, *flags
    raise Unsupported(f"needs a C compiler: no {asked or ' or '.join(COMPILERS)} on the path")


def _loaded(source: Path, compiler: tuple[str, ...]) -> ctypes.CDLL:
    name = f"{source.stem}-{_fingerprint(source, compiler)}.so"
    folder = _cache_folder()
    if folder is None:
        with tempfile.TemporaryDirectory() as aside:
            return ctypes.CDLL(_compile(source, compiler, Path(aside) / name))
    kept = folder / name
    return ctypes.CDLL(kept if kept.exists() else _compile(source, compiler, kept))


def _compile(source: Path, compiler: tuple[str, ...], to: Path) -> Path:
    # Another process may compile at the same time: each writes its own file and renames it.
    handle, new = tempfile.mkstemp(suffix=".so", dir=to.parent)
    os.close(handle)
    try:
        folders = (f"-I{_HEADER.parent}", "-isystem", jax.ffi.include_dir())
        _ask(compiler, *FLAGS, *folders, str(source), "-o", new)
        Path(new).replace(to)
    finally:
        Path(new).unlink(missing_ok=True)
    return to


def _fingerprint(source: Path, compiler: tuple[str, ...]) -> str:
    """Return a hash of everything that affects the compiled code."""
    described = _ask(compiler, "--version")
    # Includes the processor, because machines of several kinds may share a home folder.
    parts = (
        source.read_text("utf-8"),
        _HEADER.read_text("utf-8"),
        described,
        *compiler,
        *FLAGS,
        version("jaxlib"),
        _processor(),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _ask(compiler: tuple[str, ...], *arguments: str) -> str:
    command = [*compiler, *arguments]
    done = subprocess.run(  # noqa: S603 - the user's own compiler
        command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    if done.returncode:
        reason = next(iter(done.stderr.splitlines()), f"exit status {done.returncode}")
        raise Unsupported(f"cannot be compiled here: {compiler[0]} says {reason}")
    return done.stdout


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    words = ("model name", "flags", "CPU part", "Features")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(words)))


def _cache_folder() -> Path | None:
    """Return a cache folder that only this user can write to, or None.

    Libraries in it are executed, so other users must not be able to write to it.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "pallas_kernels"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except (OSError, RuntimeError):
        return None
    is_own = state.st_uid == os.geteuid() and not state.st_mode & 0o022
    return folder if is_own and os.access(folder, os.W_OK) else None
