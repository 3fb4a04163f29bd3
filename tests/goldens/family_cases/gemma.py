"""Gemma decoders, alone and in multimodal checkpoints."""

from tests.goldens.checkpoints import WINDOW, HfConfig

_TYPES = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
_SIZES: HfConfig = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "sliding_window": WINDOW,
    "layer_types": _TYPES,
    "query_pre_attn_scalar": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GEMMA3: HfConfig = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    **_SIZES,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "rope_theta": 10000.0,
    "rope_local_base_freq": 100.0,
}
_GEMMA4: HfConfig = {
    "architectures": ["Gemma4ForCausalLM"],
    "model_type": "gemma4_text",
    **{key: value for key, value in _SIZES.items() if key != "query_pre_attn_scalar"},
    "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 6,
    "head_dim": 8,
    "global_head_dim": 12,
    "final_logit_softcapping": 4.0,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {
            "rope_type": "proportional",
            "partial_rotary_factor": 0.25,
            "rope_theta": 1000.0,
        },
    },
}
_VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 28,
    "patch_size": 14,
}

FAMILIES: dict[str, dict[str, HfConfig]] = {
    "gemma2": {
        "soft caps, windows": {
            "architectures": ["Gemma2ForCausalLM"],
            "model_type": "gemma2",
            **_SIZES,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 4.0,
        },
        "no soft caps, pattern of windows": {
            "architectures": ["Gemma2ForCausalLM"],
            "model_type": "gemma2",
            **_SIZES,
            "layer_types": None,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
    },
    "gemma3_text": {
        "windows, two rotations": _GEMMA3,
        "rotation by type of layer, soft cap": {
            **{key: value for key, value in _GEMMA3.items() if not key.startswith("rope")},
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
            },
            "final_logit_softcapping": 4.0,
        },
        "both ways": {
            **_GEMMA3,
            "architectures": ["Gemma3TextModel"],
            "use_bidirectional_attention": True,
            "sliding_window": 2 * WINDOW,
        },
    },
    "gemma3": {
        "text of a multimodal checkpoint": {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "text_config": _GEMMA3,
            "vision_config": _VISION,
            "mm_tokens_per_image": 4,
            "image_token_index": 95,
        }
    },
    "gemma4_text": {
        "inputs of layers, shared keys and values": {
            **_GEMMA4,
            "num_hidden_layers": 5,
            "layer_types": [_TYPES[0], *_TYPES],
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
        },
        "keys as values": {
            **_GEMMA4,
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "attention_bias": True,
        },
        "experts, shared keys and values": {
            **_GEMMA4,
            "num_hidden_layers": 3,
            "layer_types": [*_TYPES[:2], _TYPES[1]],
            "num_kv_shared_layers": 1,
            "use_double_wide_mlp": True,
            "enable_moe_block": True,
            "num_experts": 6,
            "top_k_experts": 2,
            "moe_intermediate_size": 20,
        },
    },
    "gemma4": {
        "text of a multimodal checkpoint": {
            "architectures": ["Gemma4ForConditionalGeneration"],
            "model_type": "gemma4",
            "text_config": {**_GEMMA4, "num_hidden_layers": 2, "layer_types": _TYPES[:2]},
            "vision_config": {
                "model_type": "gemma4_vision",
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "num_key_value_heads": 1,
                "head_dim": 8,
                "global_head_dim": 8,
                "patch_size": 4,
                "position_embedding_size": 16,
                "pooling_kernel_size": 1,
            },
            "audio_config": None,
            "image_token_id": 95,
            "video_token_id": 94,
            "audio_token_id": 93,
        }
    },
}
