"""Sampling defaults of a checkpoint."""

import json
from pathlib import Path

import pytest

from jaxserve.errors import CheckpointError, ConfigError
from jaxserve.loading.checkpoint import Checkpoint
from jaxserve.loading.generation import GenerationDefaults


def test_defaults_are_read_from_generation_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", "utf-8")
    found = {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0,
        "repetition_penalty": 1.05,
        "max_new_tokens": 512,
        "eos_token_id": [151645, 151643],
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(found), "utf-8")
    assert Checkpoint.open(tmp_path).generation == GenerationDefaults(
        temperature=0.6,
        top_p=0.95,
        top_k=20,
        min_p=0.0,
        repetition_penalty=1.05,
        max_new_tokens=512,
        eos_token_ids=(151645, 151643),
    )


def test_a_folder_without_the_file_has_no_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", "utf-8")
    assert Checkpoint.open(tmp_path).generation == GenerationDefaults()


@pytest.mark.parametrize(
    ("generation", "config", "ids"),
    [
        ({"eos_token_id": 2}, {"eos_token_id": 7}, (2,)),
        ({"eos_token_id": 0}, {"eos_token_id": 7}, (0,)),
        ({}, {"eos_token_id": [7, 8]}, (7, 8)),
        ({"eos_token_id": None}, {"eos_token_id": 7}, (7,)),
        ({}, {}, ()),
    ],
)
def test_end_tokens_come_from_the_generation_config_first(
    generation: dict[str, object], config: dict[str, object], ids: tuple[int, ...]
) -> None:
    assert GenerationDefaults.read(generation, config).eos_token_ids == ids


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("temperature", float("nan")),
        ("top_p", 1.5),
        ("top_k", 2.5),
        ("top_k", True),
        ("max_new_tokens", 0),
        ("eos_token_id", "</s>"),
        ("eos_token_id", [2, -1]),
    ],
)
def test_an_impossible_default_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=key):
        GenerationDefaults.read({key: value}, {})


def test_a_default_that_every_request_would_be_refused_for_is_refused_at_once() -> None:
    with pytest.raises(CheckpointError, match=r"generation_config.json: top_p must be in \(0, 1\]"):
        GenerationDefaults.read({"top_p": 0.0}, {})


def test_defaults_of_a_folder_stand_in_for_the_models(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.3, "top_k": 5}', "utf-8")
    found = GenerationDefaults.of_folder(tmp_path)
    assert (found.temperature, found.top_k, found.top_p) == (0.3, 5, None)
    with pytest.raises(CheckpointError, match="must be a readable JSON file"):
        GenerationDefaults.of_folder(tmp_path / "nowhere")


def test_single_defaults_can_be_overridden() -> None:
    own = GenerationDefaults(temperature=0.3, top_k=5, eos_token_ids=(2,))
    found = own.overridden({"temperature": 1, "max_new_tokens": 9})
    assert found == GenerationDefaults(
        temperature=1.0, top_k=5, max_new_tokens=9, eos_token_ids=(2,)
    )
    assert own.overridden({}) == own


@pytest.mark.parametrize("values", [{"heat": 1}, {"temperature": -1}, {"top_p": "much"}])
def test_an_override_that_means_nothing_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="override_generation_config"):
        GenerationDefaults().overridden(values)
