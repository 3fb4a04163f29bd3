"""Decoders with mixtures of experts."""

from tests.goldens.checkpoints import WINDOW, HfConfig


def _config(model_type: str, architecture: str, **keys: object) -> HfConfig:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | keys


_QWEN3 = _config(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    num_experts=6,
    moe_intermediate_size=24,
    norm_topk_prob=True,
)
_GLM = _config(
    "glm4_moe",
    "Glm4MoeForCausalLM",
    n_routed_experts=6,
    moe_intermediate_size=24,
    first_k_dense_replace=1,
    partial_rotary_factor=0.5,
    routed_scaling_factor=1.5,
    attention_bias=True,
)
_ERNIE = _config(
    "ernie4_5_moe",
    "Ernie4_5_MoeForCausalLM",
    moe_num_experts=6,
    moe_k=2,
    moe_intermediate_size=24,
)
_GPT_OSS = _config(
    "gpt_oss",
    "GptOssForCausalLM",
    num_local_experts=6,
    sliding_window=WINDOW,
    rope_theta=150000.0,
    rope_scaling={
        "rope_type": "yarn",
        "factor": 4.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 32,
    },
)
_MINIMAX = _config("minimax_m2", "MiniMaxM2ForCausalLM", num_local_experts=6, rotary_dim=8)
_OLMOE = _config("olmoe", "OlmoeForCausalLM", num_experts=6, head_dim=8, num_key_value_heads=4)
_MIXTRAL = _config("mixtral", "MixtralForCausalLM", num_local_experts=6)

FAMILIES: dict[str, dict[str, HfConfig]] = {
    "ernie4_5_moe": {
        "shared experts": _ERNIE,
        "tied": _ERNIE | {"tie_word_embeddings": True},
        "experts in one layer": _ERNIE
        | {
            "num_hidden_layers": 4,
            "moe_layer_interval": 2,
            "moe_layer_end_index": 2,
            "moe_num_shared_experts": 0,
        },
    },
    "glm4_moe": {
        "shared expert": _GLM,
        "groups": _GLM | {"n_group": 3, "topk_group": 2, "use_qk_norm": True},
        "not renormalised": _GLM | {"norm_topk_prob": False, "n_shared_experts": 2},
    },
    "gpt_oss": {
        "sinks and windows": _GPT_OSS,
        "tight clamp": _GPT_OSS | {"swiglu_limit": 0.5, "swiglu_alpha": 1.2},
        "without biases": _GPT_OSS | {"attention_bias": False},
    },
    "minimax_m2": {
        "partial rotation": _MINIMAX,
        "whole heads": {key: value for key, value in _MINIMAX.items() if key != "rotary_dim"},
    },
    "mixtral": {
        "two experts of six": _MIXTRAL,
        "sliding": _MIXTRAL | {"sliding_window": WINDOW},
        "all experts": _MIXTRAL | {"num_experts_per_tok": 6},
    },
    "olmoe": {
        "joint norms": _OLMOE,
        "renormalised": _OLMOE | {"norm_topk_prob": True, "num_key_value_heads": 2},
    },
    "qwen3_moe": {
        "two experts of six": _QWEN3,
        "not renormalised": _QWEN3 | {"norm_topk_prob": False},
        "one expert": _QWEN3 | {"num_experts_per_tok": 1, "norm_topk_prob": False},
        "a dense layer": _QWEN3 | {"mlp_only_layers": [0]},
        "every second layer": _QWEN3 | {"decoder_sparse_step": 2, "num_hidden_layers": 3},
        "sliding": _QWEN3 | {"use_sliding_window": True, "sliding_window": WINDOW},
        "as transformers saves it": {
            **{key: value for key, value in _QWEN3.items() if key != "num_experts"},
            "num_local_experts": 6,
        },
    },
}
