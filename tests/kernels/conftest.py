"""C compiled as for a processor that has less than this one."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from pallas_kernels.native import library

type Recompile = Callable[[Path, tuple[str, ...]], None]


@pytest.fixture(params=["-mno-avx512f", "-mno-avx"])
def recompile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Recompile:
    """Return what compiles a file without the widest vectors, and has its functions called."""
    flags = request.param
    compiler = f"cc {flags}"
    try:
        subprocess.run(
            [*compiler.split(), "-E", "-xc", "/dev/null"], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"the compiler has no {flags}")
    real, call = jax.ffi.register_ffi_target, jax.ffi.ffi_call
    names: dict[str, str] = {}

    def register(name: str, handler: object, *, platform: str) -> None:
        names[name] = name + flags
        real(names[name], handler, platform=platform)

    def compile_anew(source: Path, functions: tuple[str, ...]) -> None:
        with monkeypatch.context() as patch:
            patch.setenv("CC", compiler)
            patch.setattr("jax.ffi.register_ffi_target", register)
            library.register.__wrapped__(source, functions)
        monkeypatch.setattr(
            "jax.ffi.ffi_call", lambda name, *rest, **more: call(names[name], *rest, **more)
        )

    return compile_anew
