"""Finding a checkpoint and its parts, and refusing what is not one."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxserve.errors import CheckpointError
from jaxserve.loading.checkpoint import Checkpoint
from tests.goldens.checkpoints import tensor_shapes, tiny_config, write_checkpoint

CONFIG = tiny_config("llama")


def test_a_folder_gives_its_config_and_every_tensor(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, CONFIG))
    assert checkpoint.hf_config == CONFIG
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    assert shapes == tensor_shapes(CONFIG)
    assert {info.dtype for info in checkpoint.tensors.values()} == {"F32"}


def test_shards_named_by_the_index_are_one_checkpoint(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    tensors = Checkpoint.open(tmp_path).tensors
    assert {name: info.file.name for name, info in tensors.items()} == {
        "a": "one.safetensors",
        "b": "two.safetensors",
    }


def write_shards(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "config.json").write_text("{}", "utf-8")
    for name, file in weight_map.items():
        save_file({name: np.zeros(1, np.float32)}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}), "utf-8")


@pytest.mark.parametrize(
    "file", ["../a.safetensors", "/tmp/a.safetensors", "b/a.safetensors", "..", "a.bin"]
)
def test_an_index_that_points_out_of_its_folder_is_refused(tmp_path: Path, file: str) -> None:
    (tmp_path / "config.json").write_text("{}", "utf-8")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": file}}), "utf-8")
    with pytest.raises(CheckpointError, match="not a safetensors file beside it"):
        _ = Checkpoint.open(tmp_path).tensors


def test_shards_that_are_absent_are_named(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"its index names: two\.safetensors"):
        _ = Checkpoint.open(tmp_path).tensors


def test_pickled_weights_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", "utf-8")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin\), which can run code"):
        _ = Checkpoint.open(tmp_path).tensors


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", "utf-8")
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor"):
        _ = Checkpoint.open(tmp_path).tensors


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a readable"):
        _ = Checkpoint.open(tmp_path).tensors


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff\xfe"])
def test_a_config_that_is_not_a_json_object_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"config\.json of .* is not"):
        _ = Checkpoint.open(tmp_path).hf_config


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "float16", "torch_dtype": "bfloat16"}, "float16"),
        ({"torch_dtype": None}, "float32"),
    ],
)
def test_dtype_is_read_in_both_spellings_or_from_the_tensors(
    tmp_path: Path, keys: dict[str, object], dtype: str
) -> None:
    assert Checkpoint.open(write_checkpoint(tmp_path, CONFIG | keys)).dtype == dtype


def test_an_unsupported_dtype_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, CONFIG | {"dtype": "float64"}))
    with pytest.raises(CheckpointError, match="dtype = 'float64'"):
        _ = checkpoint.dtype
