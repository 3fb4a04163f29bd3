"""How long a context published RoPE settings give, in vLLM's counting, and overrides of them."""

import pytest

from jaxserve.errors import CheckpointError
from jaxserve.layers.rope import LinearRope, Llama3Rope, Rope, YarnRope
from jaxserve.models import config_from_hf, read_config, stretched_rope, with_overrides
from tests.goldens.checkpoints import HfConfig, encoder_config, tiny_config
from tests.goldens.families import FAMILIES

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
QWEN_README = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ["type", "rope_type"])
@pytest.mark.parametrize(
    ("settings", "num_tokens"),
    [
        ({"kind": "default"}, 128),
        # Qwen's README: the original context is the whole max_position_embeddings.
        ({"kind": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        # Qwen3's: it is less than that.
        ({"kind": "yarn", "factor": 4.0, "original_max_position_embeddings": 96}, 384),
        # DeepSeek's: it is counted in already.
        ({"kind": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ({"kind": "yarn", "factor": 4.0}, 512),
        ({"kind": "yarn", "original_max_position_embeddings": 3}, 128),
        ({"kind": "linear", "factor": 4.0}, 512),  # vicuna-16k
        ({"kind": "linear", "factor": 8}, 1024),  # longchat
        ({"kind": "linear", "factor": 1.5}, 192),
        ({"kind": "dynamic", "factor": 2.5}, 320),
        ({**LLAMA3, "kind": "llama3"}, 128),
    ],
)
def test_the_context_is_the_factor_times_the_original(
    key: str, kind: str, settings: dict[str, object], num_tokens: int
) -> None:
    found = {name: value for name, value in settings.items() if name not in {"kind", "rope_type"}}
    config = tiny_config("llama", **{key: found | {kind: settings["kind"]}})
    assert config_from_hf(config).longest_context == num_tokens


def test_settings_of_all_kinds_of_layers_may_be_the_same() -> None:
    nested = {"full_attention": QWEN_README, "sliding_attention": QWEN_README}
    config = config_from_hf(tiny_config("llama", rope_parameters=nested))
    assert config.rope == YarnRope(factor=4.0, original_max_position=128)


def test_a_file_with_both_spellings_keeps_what_only_one_says() -> None:
    config = tiny_config(
        "llama",
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        rope_scaling={"type": "linear", "factor": 2.0},
    )
    assert config_from_hf(config).rope == LinearRope(theta=1e6, factor=2.0)


@pytest.mark.parametrize("theirs", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("ours", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ["type", "rope_type"])
def test_an_override_wins_whatever_spelling_the_file_has(theirs: str, ours: str, kind: str) -> None:
    published = tiny_config("llama", **{theirs: {kind: "linear", "factor": 2.0, "rope_theta": 5e5}})
    overridden = with_overrides(published, {ours: QWEN_README})
    expected = YarnRope(theta=5e5, factor=4.0, original_max_position=128)
    assert config_from_hf(overridden).rope == expected
    plain = with_overrides(published, {ours: None})
    assert config_from_hf(plain).rope == Rope(theta=5e5)


def test_objects_are_merged_key_by_key_and_other_values_replaced() -> None:
    published = {"a": {"b": 1, "c": {"d": 2}}, "e": [1, 2], "f": 3}
    overrides = {"a": {"c": {"g": 4}}, "e": [5], "h": None}
    assert with_overrides(published, overrides) == {
        "a": {"b": 1, "c": {"d": 2, "g": 4}},
        "e": [5],
        "f": 3,
        "h": None,
    }
    assert published["a"] == {"b": 1, "c": {"d": 2}}


def test_an_override_that_is_no_object_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="rope_scaling must be a JSON object, got 'yarn'"):
        with_overrides(tiny_config("llama"), {"rope_scaling": "yarn"})


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 100},
        LLAMA3,
    ],
)
def test_the_overrides_that_are_advised_reach_the_length(settings: dict[str, object]) -> None:
    published = tiny_config("llama", rope_parameters={**settings, "rope_theta": 5e5})
    config = config_from_hf(published)
    overrides = stretched_rope(config, 1000)
    assert overrides is not None
    stretched = config_from_hf(with_overrides(published, overrides))
    assert 1000 <= stretched.longest_context < 2000
    assert stretched.rope is not None
    assert stretched.rope.theta == 5e5


@pytest.mark.parametrize("published", [*FAMILIES["gpt2"].values(), encoder_config("bert")])
def test_no_override_is_advised_for_a_table_of_positions(published: HfConfig) -> None:
    assert stretched_rope(read_config(published), 1000) is None


def test_the_context_named_beside_the_settings_counts_first() -> None:
    config = config_from_hf(
        tiny_config("llama", original_max_position_embeddings=16, rope_scaling=LLAMA3)
    )
    assert isinstance(config.rope, Llama3Rope)
    assert config.rope.original_max_position == 16


def test_the_context_of_gemma_3_includes_the_factor() -> None:
    settings = {"rope_type": "linear", "factor": 8.0}
    (published, *_) = FAMILIES["gemma3_text"].values()
    published = {**published, "max_position_embeddings": 400, "rope_scaling": settings}
    config = read_config(published)
    assert config.longest_context == 400
    overrides = stretched_rope(config, 1000)
    assert overrides is not None
    assert read_config(with_overrides(published, overrides)).longest_context == 1000
