"""Sampling defaults of a checkpoint: a published file never keeps a server from starting."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxserve.errors import CheckpointError, ConfigError
from jaxserve.frontend.generation_defaults import GenerationDefaults

type Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a `generation_config.json`: an object by its values, or a text as it is."""

    def write(content: str = "", **values: object) -> Path:
        text = content or json.dumps(values)
        (tmp_path / "generation_config.json").write_text(text, "utf-8")
        return tmp_path

    return write


def test_defaults_are_read_from_generation_config(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(
        do_sample=True,
        temperature=0.6,
        top_p=0.95,
        top_k=20,
        min_p=0,
        repetition_penalty=1.05,
        max_new_tokens=512,
        eos_token_id=[151645, 151643],
        transformers_version="4.51.0",
    )
    assert GenerationDefaults.read(folder, {}) == GenerationDefaults(
        temperature=0.6,
        top_p=0.95,
        top_k=20,
        min_p=0.0,
        repetition_penalty=1.05,
        max_new_tokens=512,
        eos_token_ids=(151645, 151643),
    )
    assert not caplog.records


def test_a_folder_without_the_file_has_no_defaults(tmp_path: Path) -> None:
    assert GenerationDefaults.read(tmp_path, {}) == GenerationDefaults()


@pytest.mark.parametrize(
    ("generation", "config", "ids"),
    [
        ({"eos_token_id": 2}, {"eos_token_id": 7}, (2,)),
        ({"eos_token_id": 0}, {"eos_token_id": 7}, (0,)),
        ({}, {"eos_token_id": [7, 8]}, (7, 8)),
        ({"eos_token_id": None}, {"eos_token_id": 7}, (7,)),
        ({"eos_token_id": [2, None]}, {}, (2,)),
        ({"eos_token_id": "</s>"}, {"eos_token_id": 7}, (7,)),
        ({"eos_token_id": -1}, {"eos_token_id": 7}, (7,)),
        ({"eos_token_id": [True]}, {"eos_token_id": 7}, (7,)),
        ({}, {}, ()),
    ],
)
def test_end_tokens_come_from_the_first_file_that_names_some(
    write: Write, generation: dict[str, object], config: dict[str, object], ids: tuple[int, ...]
) -> None:
    assert GenerationDefaults.read(write(**generation), config).eos_token_ids == ids


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", 2.5),
        ("top_k", -2),
        ("top_k", True),
        ("top_k", [50]),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("max_new_tokens", 0),
        ("max_new_tokens", "many"),
        ("max_new_tokens", 10**400),
    ],
)
def test_a_value_that_no_request_could_use_is_left_out_with_a_warning(
    write: Write, caplog: pytest.LogCaptureFixture, key: str, value: object
) -> None:
    found = GenerationDefaults.read(write(**{key: value, "eos_token_id": 2}), {})
    assert found == GenerationDefaults(eos_token_ids=(2,))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for part in ("generation_config.json", f"{key} must be", "--override-generation-config"):
        assert part in record.message


@pytest.mark.parametrize(
    ("key", "value", "repaired"),
    [
        ("top_k", 50.0, 50),
        ("top_k", "50", 50),
        ("max_new_tokens", "512", 512),
        ("temperature", "0.7", 0.7),
    ],
)
def test_a_number_in_another_type_is_repaired_with_a_warning(
    write: Write, caplog: pytest.LogCaptureFixture, key: str, value: object, repaired: object
) -> None:
    found = getattr(GenerationDefaults.read(write(**{key: value}), {}), key)
    assert (found, type(found)) == (repaired, type(repaired))
    assert f"{key} = {value!r}, which is read as {repaired}" in caplog.text


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"temperature": 0.5', "[" * 100_000])
def test_a_broken_file_is_ignored_with_a_warning(
    write: Write, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    found = GenerationDefaults.read(write(text), {"eos_token_id": 7})
    assert found == GenerationDefaults(eos_token_ids=(7,))
    assert "generation_config.json must" in caplog.text
    assert "its defaults are not used" in caplog.text


def test_neutral_defaults_keep_the_end_tokens_and_look_at_nothing_else(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(temperature=0.3, top_p=0, top_k=50.0, eos_token_id=[2, 3])
    found = GenerationDefaults.read(folder, {}, source="vllm")
    assert found == GenerationDefaults(eos_token_ids=(2, 3))
    assert not caplog.records


def test_neutral_defaults_are_not_disturbed_by_a_broken_file(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    found = GenerationDefaults.read(write("{"), {"eos_token_id": 7}, source="vllm")
    assert found == GenerationDefaults(eos_token_ids=(7,))
    assert not caplog.records


def test_defaults_of_another_folder_stand_in_for_the_models(write: Write, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "generation_config.json").write_text('{"temperature": 0.3, "top_k": 5}', "utf-8")
    found = GenerationDefaults.read(
        write(temperature=1.0, eos_token_id=2), {"eos_token_id": 7}, source=str(other)
    )
    assert found == GenerationDefaults(temperature=0.3, top_k=5, eos_token_ids=(2,))


@pytest.mark.parametrize("content", [None, "{"])
def test_another_folder_must_have_a_readable_file(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "generation_config.json").write_text(content, "utf-8")
    with pytest.raises(CheckpointError, match="must be a readable JSON file"):
        GenerationDefaults.read(tmp_path, {}, source=str(tmp_path))


def test_overrides_replace_single_values_and_repair_a_file(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(temperature=0.3, top_p=0, top_k=50.0, min_p=0.1, eos_token_id=2)
    overrides: dict[str, Any] = {"top_p": 0.5, "top_k": 9, "min_p": None, "max_new_tokens": 7}
    assert GenerationDefaults.read(folder, {}, overrides=overrides) == GenerationDefaults(
        temperature=0.3, top_p=0.5, top_k=9, max_new_tokens=7, eos_token_ids=(2,)
    )
    assert not caplog.records


@pytest.mark.parametrize(
    "values", [{"heat": 1}, {"temperature": -1}, {"top_p": "much"}, {"top_p": 0}]
)
def test_an_override_that_means_nothing_is_refused(
    tmp_path: Path, values: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match="override_generation_config"):
        GenerationDefaults.read(tmp_path, {}, overrides=values)
