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
_MIXTRAL = _config("mixtral", "MixtralForCausalLM", num_local_experts=6)

FAMILIES: dict[str, dict[str, HfConfig]] = {
    "mixtral": {
        "two experts of six": _MIXTRAL,
        "sliding": _MIXTRAL | {"sliding_window": WINDOW},
        "all experts": _MIXTRAL | {"num_experts_per_tok": 6},
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
