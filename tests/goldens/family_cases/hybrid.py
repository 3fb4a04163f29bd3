"""Hybrids of attention and recurrent layers."""

from tests.goldens.checkpoints import HfConfig

# More than three chunks of a recurrent layer.
NUM_TOKENS = 200


def _qwen(model_type: str, architecture: str, **keys: object) -> HfConfig:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 12,
        "linear_conv_kernel_dim": 4,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    } | keys


_QWEN3_NEXT = ("qwen3_next", "Qwen3NextForCausalLM")
_QWEN3_5 = ("qwen3_5_text", "Qwen3_5ForCausalLM")
_QWEN3_5_MOE = ("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM")
# With four layers transformers itself is 1.7e-4 from float64.
_THREE_LAYERS: HfConfig = {"num_hidden_layers": 3, "full_attention_interval": 3}
_EXPERTS: HfConfig = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 20,
}
_VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "patch_size": 4,
}
_SHALLOW_EXPERTS: HfConfig = {**_THREE_LAYERS, **_EXPERTS}

FAMILIES: dict[str, dict[str, HfConfig]] = {
    "qwen3_next": {
        "default": _qwen(*_QWEN3_NEXT, num_experts=0),
        "all-rotated": _qwen(*_QWEN3_NEXT, num_experts=0, partial_rotary_factor=1.0),
        "other-order": _qwen(
            *_QWEN3_NEXT,
            num_experts=0,
            layer_types=["full_attention", "linear_attention"] * 2,
            linear_num_value_heads=2,
            tie_word_embeddings=True,
        ),
        "experts": _qwen(*_QWEN3_NEXT, **_SHALLOW_EXPERTS, norm_topk_prob=True),
        "dense-layers": _qwen(
            *_QWEN3_NEXT,
            **_SHALLOW_EXPERTS,
            norm_topk_prob=False,
            mlp_only_layers=[0],
            decoder_sparse_step=2,
        ),
    },
    "qwen3_5_text": {
        "default": _qwen(*_QWEN3_5, **_THREE_LAYERS),
        "long-convolution": _qwen(
            *_QWEN3_5, **_THREE_LAYERS, linear_conv_kernel_dim=6, attention_bias=True
        ),
    },
    "qwen3_5": {
        "default": {
            "architectures": ["Qwen3_5ForConditionalGeneration"],
            "model_type": "qwen3_5",
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
            "text_config": _qwen(
                "qwen3_5_text",
                "Qwen3_5ForCausalLM",
                rope_parameters={
                    "rope_type": "default",
                    "rope_theta": 1e5,
                    "partial_rotary_factor": 0.5,
                    "mrope_section": [2, 1, 1],
                    "mrope_interleaved": True,
                },
            ),
            "vision_config": _VISION,
        }
    },
    "qwen3_5_moe_text": {"default": _qwen(*_QWEN3_5_MOE, **_EXPERTS)},
    "qwen3_5_moe": {
        "default": {
            "architectures": ["Qwen3_5MoeForConditionalGeneration"],
            "model_type": "qwen3_5_moe",
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
            "text_config": _qwen(*_QWEN3_5_MOE, **(_THREE_LAYERS | _EXPERTS)),
            "vision_config": _VISION,
        }
    },
}
