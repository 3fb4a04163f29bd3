"""`config.json` is read strictly: what would be computed wrongly is refused by key and value."""

from dataclasses import replace
from pathlib import Path

import pytest

from jaxserve import models
from jaxserve.errors import CheckpointError
from jaxserve.layers.rope import LinearRope, Rope, YarnRope
from jaxserve.models import DecoderConfig, GroupedQuery, config_from_hf, families
from tests.goldens.checkpoints import tiny_config
from tests.goldens.families import FAMILIES as GOLDEN_FAMILIES

# Families of tests/goldens/checkpoints.py; all others are those of tests/goldens/families.py.
FIRST = {"bert", "llama", "mistral", "qwen2", "qwen3", "roberta", "xlm_roberta"}
# Other names of families, unknown to transformers.
ALIASES = {"kimi_k2": "deepseek_v3"}


def attention(config: DecoderConfig) -> GroupedQuery:
    mixer = config.layers[0].mixer
    assert isinstance(mixer, GroupedQuery)
    return mixer


def windows(config: DecoderConfig) -> tuple[int | None, ...]:
    return tuple(layer.mixer.sliding_window for layer in config.layers)


def test_every_file_is_a_family_with_goldens() -> None:
    assert families() == tuple(sorted(FIRST | GOLDEN_FAMILIES.keys() | ALIASES.keys()))


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_read_like_its_family(alias: str) -> None:
    hf = next(iter(GOLDEN_FAMILIES[ALIASES[alias]].values()))
    config = config_from_hf(hf | {"model_type": alias})
    assert config == replace(config_from_hf(hf), model_type=alias)


def test_a_folder_is_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder_of_parts"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .reading import config_from_hf as config_from_hf\n")
    (folder / "reading.py").write_text("from jaxserve.models.llama import config_from_hf\n")
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    assert "folder_of_parts" in families()
    config = config_from_hf(tiny_config("llama") | {"model_type": "folder-of-parts"})
    assert config.model_type == "folder-of-parts"


@pytest.mark.parametrize("model_type", ["t5", "decoder", "../llama", "__init__", 3, None])
def test_an_unknown_model_type_is_refused_with_the_known_ones(model_type: object) -> None:
    with pytest.raises(CheckpointError, match="model_type") as caught:
        config_from_hf(tiny_config("llama") | {"model_type": model_type})
    assert str(caught.value).endswith(f"jaxserve supports {', '.join(families())}")


@pytest.mark.parametrize(("model_type", "nearest"), [("smollm2", "smollm3"), ("phi4", "phi3")])
def test_an_unknown_model_type_is_refused_with_the_nearest(model_type: str, nearest: str) -> None:
    with pytest.raises(CheckpointError, match=f"nearest supported family is {nearest};"):
        config_from_hf(tiny_config("llama") | {"model_type": model_type})


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("llama", "hidden_act", "gelu"),
        ("llama", "pretraining_tp", 2),
        ("llama", "partial_rotary_factor", 0.5),
        ("llama", "vocab_size", 0),
        ("llama", "vocab_size", True),
        ("llama", "hidden_size", "32"),
        ("llama", "rms_norm_eps", float("nan")),
        ("llama", "rope_theta", -1.0),
        ("llama", "rope_theta", float("inf")),
        ("llama", "tie_word_embeddings", "yes"),
        ("llama", "rope_scaling", "yarn"),
        ("llama", "architectures", ["LlamaForQuestionAnswering"]),
        ("llama", "head_dim", 15),
        ("llama", "num_key_value_heads", 3),
        ("mistral", "sliding_window", 0),
        ("mistral", "layer_types", ["full_attention"] * 3),
        ("qwen2", "layer_types", ["full_attention"] * 2),
        ("qwen2", "layer_types", ["full_attention", "full_attention", "linear_attention"]),
        ("qwen3", "layer_types", ["full_attention", "full_attention", "sliding_attention"]),
        ("qwen3", "max_window_layers", -1),
    ],
)
def test_an_unsupported_value_is_refused_by_name(family: str, key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=key):
        config_from_hf(tiny_config(family, **{key: value}))


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "max_position_embeddings"])
def test_a_missing_size_is_refused_by_name(key: str) -> None:
    hf = tiny_config("llama")
    del hf[key]
    with pytest.raises(CheckpointError, match=f"config.json lacks {key}"):
        config_from_hf(hf)


@pytest.mark.parametrize(
    ("rope", "fault"),
    [
        ({"rope_type": "longrope", "factor": 2.0}, "lack long_factor"),
        ({"type": "mrope"}, "rope_type = 'mrope'"),
        ({"rope_type": "linear"}, "lacks factor"),
        ({"rope_type": "linear", "factor": 0}, "factor = 0"),
        ({"rope_type": "llama3", "factor": 8.0}, "lacks low_freq_factor"),
        ({"rope_type": "yarn", "factor": 4.0, "truncate": 1}, "truncate = 1"),
        ({"rope_type": "default", "partial_rotary_factor": 0.25}, "partial_rotary_factor = 0.25"),
        (
            {
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            "sliding_attention",
        ),
    ],
)
def test_an_unsupported_rope_is_refused_by_name(rope: dict[str, object], fault: str) -> None:
    with pytest.raises(CheckpointError, match=fault):
        config_from_hf(tiny_config("llama", rope_parameters=rope))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Rope(theta=10000.0)),
        ({"rope_theta": 1e32}, Rope(theta=1e32)),
        ({"rope_theta": 500000, "rope_scaling": None}, Rope(theta=500000.0)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, Rope(theta=5e5)),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}},
            LinearRope(theta=5e5, factor=2.0),
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 32}},
            YarnRope(theta=10000.0, factor=4.0, original_max_position=32),
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2, "mscale": 1, "mscale_all_dim": 0}},
            YarnRope(
                theta=10000.0,
                factor=2.0,
                original_max_position=128,
                mscale=1.0,
                mscale_all_dim=0.0,
            ),
        ),
    ],
)
def test_rope_is_read_in_both_spellings(changes: dict[str, object], expected: Rope) -> None:
    assert config_from_hf(tiny_config("llama", **changes)).rope == expected


@pytest.mark.parametrize(
    ("keys", "num_labels"),
    [
        ({}, 2),
        ({"num_labels": 5}, 5),
        ({"num_labels": None}, 2),
        ({"num_labels": 1, "id2label": None}, 1),
        ({"num_labels": 7, "id2label": {"0": "a", "1": "b", "2": "c"}}, 3),
    ],
)
def test_labels_may_be_counted_without_being_named(
    keys: dict[str, object], num_labels: int
) -> None:
    labelled = {"architectures": ["LlamaForSequenceClassification"], **keys}
    assert config_from_hf(tiny_config("llama", **labelled)).num_labels == num_labels


def test_only_layers_from_max_window_layers_on_slide() -> None:
    hf = tiny_config("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=2)
    assert windows(config_from_hf(hf)) == (None, None, 8)


def test_no_layer_slides_unless_use_sliding_window_says_so() -> None:
    hf = tiny_config("qwen2", sliding_window=8, max_window_layers=0)
    assert windows(config_from_hf(hf)) == (None, None, None)


def test_absent_keys_take_the_defaults_of_transformers() -> None:
    def without(family: str, *keys: str) -> dict[str, object]:
        return {key: value for key, value in tiny_config(family).items() if key not in keys}

    assert attention(config_from_hf(without("llama", "num_key_value_heads"))).kv_heads == 4
    assert attention(config_from_hf(without("llama", "head_dim"))).head_dim == 8
    assert config_from_hf(without("llama", "rms_norm_eps")).norm_eps == 1e-6
    assert config_from_hf(without("llama", "tie_word_embeddings")).tied_embeddings is False
    assert attention(config_from_hf(without("qwen3", "head_dim"))).head_dim == 128
    assert windows(config_from_hf(without("mistral"))) == (4096,) * 3


def test_a_config_is_a_hashable_static() -> None:
    first, second = (config_from_hf(tiny_config("qwen3")) for _ in range(2))
    assert hash(first) == hash(second)
    assert first == second
