"""Contents of a wheel: every package, its data, and no top-level `models`."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import jaxserve

ROOT = Path(__file__).resolve().parents[1]
# Each folder of Python files and the package it is imported as.
FOLDERS = {"jaxserve": "jaxserve", "models": "jaxserve.models", "pallas_kernels": "pallas_kernels"}


def files() -> Iterator[tuple[str, Path]]:
    """Yield each file of the packages with the path that it has once installed."""
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                inner = path.relative_to(ROOT / folder).as_posix()
                yield f"{package.replace('.', '/')}/{inner}", path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, since a build leaves files beside its sources."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, symlinks=True)
    target = tmp_path_factory.mktemp("wheel")
    script = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", script, str(target)], cwd=source, check=True, capture_output=True
    )
    return next(target.glob("*.whl"))


def test_pyproject_lists_the_folders_that_hold_python() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    folders = {
        installed.rpartition("/")[0].replace("/", ".")
        for installed, path in files()
        if path.suffix == ".py"
    }
    assert settings["tool"]["setuptools"]["packages"] == sorted(folders)


def test_models_is_a_link_that_leads_to_the_models_folder() -> None:
    link = ROOT / "jaxserve" / "models"
    assert link.is_symlink()
    assert link.resolve() == ROOT / "models"


def test_wheel_holds_every_file_and_no_top_level_models(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {installed for installed, _ in files()}


def test_wheel_carries_the_version_and_the_licence(wheel: Path) -> None:
    info = f"jaxserve-{jaxserve.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    assert f"{info}/licenses/LICENSE" in names
    assert "jaxserve = jaxserve.cli:run" in entry_points
