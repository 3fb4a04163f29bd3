"""Logits of the model families against Hugging Face transformers."""

from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxserve.errors import CheckpointError
from jaxserve.loading.names import stored_names
from jaxserve.loading.weights import load_model
from jaxserve.models import hf_state, params_of, read_config
from tests.goldens.compare import outputs
from tests.goldens.families import (
    CASES,
    FAMILIES,
    FOLDER,
    golden,
    write,
    write_case,
)

TOLERANCE = 1e-4  # float32


@pytest.mark.parametrize(("family", "case"), CASES)
def test_outputs_and_saved_tensors_are_those_of_transformers(
    family: str, case: str, tmp_path: Path
) -> None:
    folder = write_case(tmp_path, family, case)
    model = load_model(folder)
    expected = golden(family)[case][1]
    np.testing.assert_allclose(outputs(model, family), expected, rtol=0, atol=TOLERANCE)
    stored = load_file(folder / "model.safetensors")
    names = stored_names(stored)
    skipped = (*model.config.spare_tensors, *model.config.skipped_tensors)
    left = {name for usual, name in names.items() if not usual.startswith(skipped)}
    for name, tensor in hf_state(model.config, params_of(model)).items():
        # Checkpoints without a head lack the first prefix.
        own = names.get(name) or names[name.partition(".")[2]]
        left.remove(own)
        np.testing.assert_array_equal(tensor, stored[own])
    assert not left


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("cohere2", "head_dim", 12),
        ("cohere2", "layer_types", ["full_attention"] * 2),
        ("cohere2", "layer_types", ["chunked_attention"] * 3),
        ("modernbert", "architectures", ["ModernBertForTokenClassification"]),
        ("modernbert", "classifier_bias", True),
        ("modernbert", "classifier_activation", "relu"),
        ("gemma2", "use_bidirectional_attention", True),
        ("gemma3_text", "attn_logit_softcapping", 50.0),
        ("gemma3_text", "hidden_activation", "silu"),
        ("gemma4_text", "num_kv_shared_layers", 6),
        ("gemma4_text", "vocab_size_per_layer_input", 95),
        ("ernie4_5_moe", "use_bias", True),
        ("glm4_moe", "n_group", 4),
        ("deepseek_v2", "norm_topk_prob", True),
        ("deepseek_v2", "qk_rope_head_dim", 7),
        ("deepseek_v3", "kv_lora_rank", None),
        ("deepseek_v3", "n_group", 3),
        ("deepseek_v3", "num_experts_per_tok", 5),
        ("deepseek_v3", "num_key_value_heads", 2),
        ("deepseek_v3", "scoring_func", "softmax"),
        ("glm4_moe_lite", "mlp_layer_types", ["dense"]),
        ("gpt2", "activation_function", "relu"),
        ("gpt2", "n_embd", None),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt_oss", "layer_types", ["full_attention"] * 3),
        ("granite", "logits_scaling", 0),
        ("granitemoehybrid", "layer_types", ["mamba"]),
        ("granitemoehybrid", "layer_types", ["mamba", "conv", "mamba"]),
        ("granitemoehybrid", "mamba_d_head", 12),
        ("granitemoehybrid", "mamba_n_groups", 3),
        ("granitemoehybrid", "position_embedding_type", "alibi"),
        ("granitemoehybrid", "time_step_limit", [0.5, 0.1]),
        ("lfm2", "conv_L_cache", 1),
        ("lfm2", "layer_types", ["conv", "conv"]),
        ("lfm2_moe", "num_experts_per_tok", 7),
        ("minimax_m2", "scoring_func", "softmax"),
        ("minimax_m2", "rotary_dim", 32),
        ("ministral3", "rope_parameters", {"rope_type": "default"}),
        ("mistral3", "text_config", None),
        ("mistral4", "partial_rotary_factor", 0.5),
        ("mixtral", "num_experts_per_tok", 7),
        ("mixtral", "num_local_experts", 0),
        ("qwen3_5_moe_text", "num_experts_per_tok", 7),
        ("qwen3_next", "linear_num_value_heads", 3),
        ("qwen3_5_text", "layer_types", ["sliding_attention"] * 3),
        ("nemotron_h", "layers_block_type", None),
        ("nemotron_h", "layers_block_type", ["mamba", "rwkv"]),
        ("nemotron_h", "mlp_hidden_act", "silu"),
        ("nemotron_h", "n_groups", 4),
        ("nemotron_h", "sliding_window", 16),
        ("olmoe", "clip_qkv", 8.0),
        ("phi3", "rope_scaling", {"type": "longrope", "long_factor": [1.0]}),
        ("qwen3_moe", "mlp_only_layers", [-1]),
        ("smollm3", "no_rope_layers", [1]),
        ("smollm3", "no_rope_layers", [1, 0, "1"]),
        ("starcoder2", "hidden_act", "silu"),
    ],
)
def test_an_unsupported_value_is_refused_by_name(family: str, key: str, value: object) -> None:
    config = next(iter(FAMILIES[family].values())) | {key: value}
    words = {"ministral3": "llama_4_scaling_beta", "phi3": "short_factor"}
    with pytest.raises(CheckpointError, match=words.get(family, key.removesuffix("s"))):
        read_config(config)


def test_a_language_model_does_not_attend_to_later_tokens() -> None:
    config = FAMILIES["gemma3_text"]["both ways"] | {"architectures": ["Gemma3ForCausalLM"]}
    with pytest.raises(CheckpointError, match="ForCausalLM with attention to later tokens"):
        read_config(config)


def test_tensors_of_other_modalities_are_skipped_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="jaxserve.loading.weights"):
        load_model(write_case(tmp_path, "mistral3", "text of a multimodal checkpoint"))
    (line,) = [message for message in caplog.messages if "skipping" in message]
    assert "vision_tower.* (" in line
    assert "multi_modal_projector.* (" in line


def test_layers_for_speculation_are_skipped_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shapes = dict(golden("glm4_moe")["shared expert"][0])
    shapes["model.layers.2.eh_proj.weight"] = (32, 64)
    folder = write(tmp_path, FAMILIES["glm4_moe"]["shared expert"], shapes)
    with caplog.at_level("INFO", logger="jaxserve.loading.weights"):
        load_model(folder)
    (line,) = [message for message in caplog.messages if "skipping" in message]
    assert "model.layers.2.* (" in line


def test_every_family_has_goldens_of_its_cases() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == FAMILIES.keys()
    for family, cases in FAMILIES.items():
        assert golden(family).keys() == cases.keys()


def test_experts_that_a_publisher_stacked_are_read_like_those_stored_one_by_one(
    tmp_path: Path,
) -> None:
    folder = write_case(tmp_path, "qwen3_5_moe", "default")
    one_by_one = load_model(folder)
    tensors = load_file(folder / "model.safetensors")
    for layer in range(one_by_one.config.num_layers):
        prefix = f"model.language_model.layers.{layer}.mlp.experts"
        gates, ups, downs = (
            [tensors.pop(f"{prefix}.{i}.{part}_proj.weight") for i in range(6)]
            for part in ("gate", "up", "down")
        )
        tensors[f"{prefix}.gate_up_proj"] = np.concatenate([gates, ups], axis=1)
        tensors[f"{prefix}.down_proj"] = np.stack(downs)
    save_file(tensors, folder / "model.safetensors")
    stacked = load_model(folder)
    jax.tree.map(np.testing.assert_array_equal, params_of(stacked), params_of(one_by_one))
