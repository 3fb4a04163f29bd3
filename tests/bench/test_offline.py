"""The offline comparison keeps what it has measured when the other side fails."""

from argparse import Namespace
from pathlib import Path

from benchmarks.offline import run_transformers


def test_interpreter_without_torch_gives_no_rates(tmp_path: Path) -> None:
    settings = Namespace(
        model="llama-3.1-8b", torch_python="false", dtype="float32", device="cpu", num_alone=1
    )
    assert run_transformers(tmp_path / "workload.json", settings) == ({}, {})
