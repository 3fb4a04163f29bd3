"""Decoders with multi-head latent attention. All widths of their attention differ."""

from tests.goldens.checkpoints import HfConfig


def _config(model_type: str, architecture: str, **keys: object) -> HfConfig:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "first_k_dense_replace": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 20,
        "kv_lora_rank": 24,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 8,
        "v_head_dim": 10,
        "n_routed_experts": 8,
        "n_shared_experts": 2,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 12,
        "routed_scaling_factor": 1.5,
        "max_position_embeddings": 128,
        # Far from 1e-6, which norms of latents have anyway.
        "rms_norm_eps": 0.1,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | keys


# As DeepSeek publishes it: the rotation keeps its magnitude, and the scores grow.
_YARN: HfConfig = {
    "rope_theta": 10000.0,
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 8.0,
    "beta_slow": 1.0,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}
_DENSE = {"first_k_dense_replace": 2}
_GROUPS = {"n_group": 4, "topk_group": 2}
_V2 = _config("deepseek_v2", "DeepseekV2ForCausalLM")
_V3 = _config("deepseek_v3", "DeepseekV3ForCausalLM", **_GROUPS)
_GLM = _config("glm4_moe_lite", "Glm4MoeLiteForCausalLM")
_MISTRAL = _config(
    "mistral4",
    "Mistral4ForCausalLM",
    rope_parameters={**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5},
)

FAMILIES: dict[str, dict[str, HfConfig]] = {
    "deepseek_v2": {
        "best experts": _V2,
        "groups": _V2 | _GROUPS | {"topk_method": "group_limited_greedy"},
        "whole queries, dense": _V2 | _DENSE | {"q_lora_rank": None},
        "yarn of another magnitude": _V2 | _DENSE | {"rope_parameters": _YARN | {"mscale": 1.5}},
    },
    "deepseek_v3": {
        "groups": _V3,
        "yarn": _V3 | {"rope_parameters": _YARN},
        "one group, not renormalised": _V3
        | {"n_group": 1, "topk_group": 1, "norm_topk_prob": False},
        "halves, biases, dense": _V3 | _DENSE | {"rope_interleave": False, "attention_bias": True},
    },
    "glm4_moe_lite": {
        "first layer dense": _GLM,
        "last layer dense": _GLM | {"mlp_layer_types": ["sparse", "dense"]},
    },
    "mistral4": {
        "all layers of experts": _MISTRAL | {"first_k_dense_replace": 0},
        "groups": _MISTRAL | _GROUPS,
    },
}
