"""The tokens that end a text are transformers', read from the files alone where they tell."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxserve.errors import CheckpointError
from jaxserve.planning.planner import EMBEDDED_FOLDER
from jaxserve.tokenization.end_tokens import read_end_ids
from jaxserve.tokenization.tokenizer import Tokenizer
from tests.data import DATA

NAMES = [
    "tokenizers/qwen2.5",
    "tokenizers/qwen3",
    "tokenizers/gpt-oss",
    "tokenizers/deepseek-r1",
    "tokenizers/mistral-v3",
    "tokenizers/phi-3",
    "checkpoints/stories260K-hf",
]


def copy(folder: Path, **fields: Any) -> Path:
    """A copy of the embedded tokenizer, with other fields in its configuration."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED_FOLDER / name, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | fields), "utf-8")
    return folder


@pytest.fixture
def unloadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A world in which no tokenizer can be loaded."""

    def refuse(folder: Path) -> Tokenizer:
        raise AssertionError(f"{folder} was loaded")

    monkeypatch.setattr(Tokenizer, "load", refuse)


@pytest.mark.parametrize("name", NAMES)
def test_published_tokenizers_tell_without_being_loaded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"test data absent: {name}")
    expected = Tokenizer.load(folder).eos_ids
    monkeypatch.setattr(Tokenizer, "load", None)
    assert read_end_ids(folder) == expected


def test_the_embedded_model_tells_without_transformers() -> None:
    script = (
        "import sys; from pathlib import Path;"
        "from jaxserve.tokenization.end_tokens import read_end_ids;"
        "print(read_end_ids(Path(sys.argv[1])), 'transformers' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, EMBEDDED_FOLDER], capture_output=True, text=True, check=True
    )
    assert found.stdout == f"{Tokenizer.load(EMBEDDED_FOLDER).eos_ids} False\n"


@pytest.mark.parametrize(
    "fields",
    [
        {"eos_token": "<|endoftext|>"},
        {"eos_token": {"__type": "AddedToken", "content": "<|im_start|>"}},
        {"eos_token": "Ġthe"},  # of the vocabulary proper
        {"eos_token": None},
        {"added_tokens_decoder": {}, "eos_token": {"__type": "AddedToken"}},
    ],
)
def test_what_a_configuration_says_is_what_transformers_makes_of_it(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    folder = copy(tmp_path, **fields)
    assert read_end_ids(folder) == Tokenizer.load(folder).eos_ids


def test_the_map_of_older_checkpoints_counts_where_transformers_reads_it(tmp_path: Path) -> None:
    folder = copy(tmp_path, eos_token="<|im_start|>")
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>"}', "utf-8")
    assert read_end_ids(folder) == Tokenizer.load(folder).eos_ids


@pytest.mark.usefixtures("unloadable")
def test_a_tokenizer_whose_files_do_not_tell_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="was loaded"):
        read_end_ids(copy(tmp_path, eos_token="no token of it"))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot load a tokenizer"):
        read_end_ids(tmp_path)


def test_a_file_that_is_no_json_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{", "utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is not JSON"):
        read_end_ids(tmp_path)
