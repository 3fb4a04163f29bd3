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


def test_of_a_tensor_in_several_shards_the_one_counts_that_the_index_names(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    for name in ("one", "two"):
        both = {"a": np.zeros(1, np.float32), "b": np.zeros(1, np.float32)}
        save_file(both, tmp_path / f"{name}.safetensors")
    tensors = Checkpoint.open(tmp_path).tensors
    assert {name: info.file.name for name, info in tensors.items()} == {
        "a": "one.safetensors",
        "b": "two.safetensors",
    }


def test_a_wrong_total_size_and_an_empty_shard_do_not_matter(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": "one.safetensors"})
    index = tmp_path / "model.safetensors.index.json"
    weight_map = {"a": "one.safetensors"}
    index.write_text(json.dumps({"metadata": {"total_size": 7}, "weight_map": weight_map}))
    save_file({}, tmp_path / "two.safetensors")
    assert Checkpoint.open(tmp_path).tensors.keys() == {"a"}


def test_an_index_that_promises_what_a_shard_lacks_is_blamed(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": "one.safetensors"})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"index\.json of .* lists b in one\.s"):
        _ = Checkpoint.open(tmp_path).tensors


@pytest.mark.parametrize("content", ['{"weight_map": {"a": "gone.safetensors"}}', "{", "{}"])
def test_a_single_file_counts_before_an_index_left_beside_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    write_checkpoint(tmp_path, CONFIG)
    (tmp_path / "model.safetensors.index.json").write_text(content, "utf-8")
    assert Checkpoint.open(tmp_path).tensors.keys() == tensor_shapes(CONFIG).keys()
    assert "using the single file" in caplog.text


def test_an_index_of_the_single_file_is_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_shards(tmp_path, {"a": "model.safetensors", "b": "more.safetensors"})
    assert Checkpoint.open(tmp_path).tensors.keys() == {"a", "b"}
    assert not caplog.records


def test_shards_without_an_index_are_read_where_all_are_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    write_shards(tmp_path, dict(zip("ab", shards, strict=True)))
    (tmp_path / "model.safetensors.index.json").unlink()
    assert Checkpoint.open(tmp_path).tensors.keys() == {"a", "b"}
    assert "reading all tensors of its 00002 shards" in caplog.text
    (tmp_path / shards[0]).unlink()
    with pytest.raises(CheckpointError, match=shards[0]):
        _ = Checkpoint.open(tmp_path).tensors


@pytest.mark.parametrize(
    "file", ["../a.safetensors", "/tmp/a.safetensors", "b/a.safetensors", "..", "a.bin"]
)
def test_an_index_that_points_out_of_its_folder_is_refused(tmp_path: Path, file: str) -> None:
    (tmp_path / "config.json").write_text("{}", "utf-8")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": file}}), "utf-8")
    with pytest.raises(CheckpointError, match="must list safetensors files in its folder"):
        _ = Checkpoint.open(tmp_path).tensors


def test_shards_that_are_absent_are_named(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"index\.json names: two\.safetensors"):
        _ = Checkpoint.open(tmp_path).tensors


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["pytorch_model.bin"], r"pickled weights \(pytorch_model\.bin\), which can run code"),
        (["pytorch_model.bin.index.json"], r"pickled weights .* writes safetensors"),
        (["a.gguf"], r"GGUF only \(a\.gguf\)"),
        (["adapter_config.json", "adapter_model.safetensors"], "is a LoRA adapter"),
        (["consolidated.safetensors", "params.json"], "Mistral's or Meta's own format"),
        (["tf_model.h5"], r"has neither model\.safetensors nor .*\(tf_model\.h5 are not read\)"),
        ([], r"has neither model\.safetensors nor"),
    ],
)
def test_a_model_without_safetensors_says_what_it_has_and_what_to_do(
    tmp_path: Path, files: list[str], said: str
) -> None:
    for name in ("config.json", *files):
        (tmp_path / name).write_text("{}", "utf-8")
    checkpoint = Checkpoint.open(tmp_path)
    assert not checkpoint.has_weights
    with pytest.raises(CheckpointError, match=said):
        _ = checkpoint.tensors


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "truncated or corrupt"),
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "git lfs pull"),
    ],
)
def test_a_damaged_file_is_refused_by_name(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    write_checkpoint(tmp_path, CONFIG)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000] if content is None else content)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors of .* not a readable.*{said}"):
        _ = Checkpoint.open(tmp_path).tensors


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, r"has no config\.json: it is not a Hugging Face model"),
        ({"adapter_config.json": '{"base_model_name_or_path": "a/b"}'}, "LoRA adapter of a/b"),
        ({"adapter_config.json": "{"}, "is a LoRA adapter "),
        ({"a-q4.gguf": ""}, r"holds only GGUF files \(a-q4\.gguf\)"),
        ({"params.json": "{}", "consolidated.00.pth": ""}, "Mistral's or Meta's own format"),
        ({"inner/config.json": "{}"}, "Did you mean .*inner?"),
        ({"snapshots/0a/config.json": "{}"}, "Did you mean .*snapshots/0a?"),
    ],
)
def test_a_folder_that_is_no_model_is_refused_for_what_it_is(
    tmp_path: Path, files: dict[str, str], said: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(CheckpointError, match=said):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [("a.gguf", "is a GGUF file"), ("model.safetensors", "give its folder")],
)
def test_a_file_of_weights_is_no_configuration(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=said):
        Checkpoint.open(tmp_path / name)


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
        ({"torch_dtype": "torch.float16"}, "float16"),
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
