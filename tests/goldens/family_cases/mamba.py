"""Hybrids of attention with Mamba2 or short convolutions. All widths of their mixers differ."""

from tests.goldens.checkpoints import HfConfig

# More than three chunks of a recurrent layer.
NUM_TOKENS = 200

_SIZES: HfConfig = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
_NEMOTRON: HfConfig = {
    "architectures": ["NemotronHForCausalLM"],
    "model_type": "nemotron_h",
    **_SIZES,
    "head_dim": 16,
    "mamba_num_heads": 6,
    "mamba_head_dim": 12,
    "n_groups": 2,
    "ssm_state_size": 8,
    "chunk_size": 32,
}
_NEMOTRON_EXPERTS: HfConfig = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "moe_shared_expert_intermediate_size": 28,
    "routed_scaling_factor": 2.5,
}
_GRANITE: HfConfig = {
    "architectures": ["GraniteMoeHybridForCausalLM"],
    "model_type": "granitemoehybrid",
    **_SIZES,
    "num_hidden_layers": 3,
    "layer_types": ["mamba", "attention", "mamba"],
    "shared_intermediate_size": 28,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_chunk_size": 32,
    "embedding_multiplier": 6.0,
    "attention_multiplier": 0.1,
    "residual_multiplier": 0.6,
    "logits_scaling": 3.0,
}
_GRANITE_DENSE: HfConfig = {"num_local_experts": 0, "num_experts_per_tok": 0}
_TWO_LAYERS: HfConfig = {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"]}
_LFM: HfConfig = {
    "architectures": ["Lfm2ForCausalLM"],
    "model_type": "lfm2",
    **_SIZES,
    "num_hidden_layers": 3,
    "layer_types": ["conv", "full_attention", "conv"],
    "block_auto_adjust_ff_dim": False,
}
_LFM_MOE: HfConfig = {
    **{key: value for key, value in _LFM.items() if not key.startswith("block")},
    "architectures": ["Lfm2MoeForCausalLM"],
    "model_type": "lfm2_moe",
    "num_dense_layers": 1,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
}

FAMILIES: dict[str, dict[str, HfConfig]] = {
    "nemotron_h": {
        "every kind of layer": {
            **_NEMOTRON,
            **_NEMOTRON_EXPERTS,
            "layers_block_type": ["mamba", "moe", "attention", "mlp"],
        },
        "latent experts in groups": {
            **_NEMOTRON,
            **_NEMOTRON_EXPERTS,
            "hybrid_override_pattern": "E*E",
            "moe_latent_size": 12,
            "n_group": 4,
            "topk_group": 2,
            "norm_topk_prob": False,
        },
        "biases, one group, short steps": {
            **_NEMOTRON,
            "hybrid_override_pattern": "M--M*",
            "n_groups": 1,
            "use_bias": True,
            "mlp_bias": True,
            "conv_kernel": 6,
            "time_step_min": 0.6,
        },
    },
    "granitemoehybrid": {
        "dense": {**_GRANITE, **_GRANITE_DENSE, "tie_word_embeddings": True},
        "shared experts": {
            **_GRANITE,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "mamba_n_groups": 2,
            **_TWO_LAYERS,
        },
        "rotation, biases, short steps": {
            **_GRANITE,
            **_GRANITE_DENSE,
            **_TWO_LAYERS,
            "position_embedding_type": "rope",
            "attention_bias": True,
            "mamba_proj_bias": True,
            "mamba_conv_bias": False,
            "time_step_limit": [0.3, 0.9],
        },
    },
    "lfm2": {
        "convolutions": _LFM,
        "biases, adjusted width": {
            **{key: value for key, value in _LFM.items() if key != "layer_types"},
            "full_attn_idxs": [2],
            "conv_bias": True,
            "conv_L_cache": 5,
            "block_auto_adjust_ff_dim": True,
            "block_ffn_dim_multiplier": 1.5,
            "block_multiple_of": 20,
            "tie_word_embeddings": True,
        },
    },
    "lfm2_moe": {
        "experts": _LFM_MOE,
        "without a correction": {
            **_LFM_MOE,
            "num_dense_layers": 0,
            "use_expert_bias": False,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.5,
        },
    },
}
