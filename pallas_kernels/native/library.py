"""Functions in C, compiled for the processor at hand and made known to XLA.

A compiler takes a second for a file, once for each version of the code, the compiler and the
processor: the result is kept in the user's cache folder, pallas_kernels/ there.
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
    """Let XLA call functions of a C file on this machine's processor, by their own names.

    Raises Unsupported, with the reason, where it cannot be compiled or loaded.
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
    """Return the compiler as a command; CC may name one with flags, as make has it."""
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
    # Another process may do the same: each writes a file of its own, and either may stay.
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
    """Tell apart what would be compiled to other code."""
    described = _ask(compiler, "--version")
    # A home folder may be shared by machines of several kinds.
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
    """Return a folder that this user alone can write, or None: what lies there is executed."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "pallas_kernels"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except (OSError, RuntimeError):
        return None
    is_own = state.st_uid == os.geteuid() and not state.st_mode & 0o022
    return folder if is_own and os.access(folder, os.W_OK) else None
