"""Kernels in C: compiled once where they can be, refused with the reason where they cannot."""

import os
from pathlib import Path

import pytest

from pallas_kernels import Unsupported, paged_attention
from pallas_kernels.native import library
from pallas_kernels.paged_attention.cases import LAYERS
from pallas_kernels.paged_attention.cpu import backend
from pallas_kernels.targets import CPU


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is compiled yet, and what is lies here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "register", library.register.__wrapped__)
    # A name of XLA's can be given once.
    monkeypatch.setattr("jax.ffi.register_ffi_target", lambda *_, **__: None)
    return tmp_path / "pallas_kernels"


def register() -> None:
    library.register(backend.SOURCE, backend.FUNCTIONS)


def write_compiler(folder: Path, script: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_is_compiled_once_into_a_folder_of_the_user(folder: Path) -> None:
    register()
    (kept,) = folder.iterdir()
    written = kept.stat().st_mtime_ns
    register()
    assert [each.stat().st_mtime_ns for each in folder.iterdir()] == [written]
    assert folder.stat().st_mode & 0o077 == 0


def test_a_folder_that_others_may_write_is_not_used(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    register()
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_without_a_folder_it_is_compiled_at_every_start(folder: Path) -> None:
    folder.parent.chmod(0o500)
    register()
    assert not folder.exists()


def test_the_compiler_asked_for_may_come_with_flags(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "cc -g")
    register()
    assert len(list(folder.iterdir())) == 1


def test_without_a_compiler_it_is_refused_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(Unsupported, match="needs a C compiler: no no-such-compiler on the path"):
        register()


def test_what_the_compiler_says_is_the_reason(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = '[ "$1" = --version ] && exit 0; echo "no stdlib.h" >&2; exit 1'
    monkeypatch.setenv("CC", write_compiler(tmp_path, script))
    with pytest.raises(Unsupported, match=r"cannot be compiled here: .*/compiler says no stdlib.h"):
        register()
    assert list(folder.iterdir()) == []


def test_where_it_is_refused_the_reference_computes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr(backend, "register", library.register)
    choice = paged_attention.choose(LAYERS["llama-3.1-8b"], target=CPU)
    assert choice.backend == "reference"
    assert dict(choice.refusals)["cpu"] == "needs a C compiler: no no-such-compiler on the path"
