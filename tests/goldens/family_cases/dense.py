"""Dense decoders, and the decoders of multimodal checkpoints that have one."""

from tests.goldens.checkpoints import WINDOW, HfConfig

_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}


def _config(model_type: str, architecture: str, **keys: object) -> HfConfig:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | keys


_MINISTRAL3 = _config(
    "ministral3",
    "Ministral3ForCausalLM",
    head_dim=16,
    sliding_window=None,
    rope_parameters={
        **_YARN,
        "original_max_position_embeddings": 16,
        "llama_4_scaling_beta": 0.3,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
)
_PHI3_FACTORS = {"short_factor": [1.0, 1.1, 1.2], "long_factor": [1.5, 2.5, 4.0]}


def _phi3(**keys: object) -> HfConfig:
    return (
        _config(
            "phi3", "Phi3ForCausalLM", original_max_position_embeddings=128, sliding_window=None
        )
        | keys
    )


_SLIDE_SLIDE_FULL = ["sliding_attention", "sliding_attention", "full_attention"]

FAMILIES: dict[str, dict[str, HfConfig]] = {
    "ministral3": {"yarn with temperature": _MINISTRAL3},
    "mistral3": {
        "text of a multimodal checkpoint": {
            "architectures": ["Mistral3ForConditionalGeneration"],
            "model_type": "mistral3",
            "text_config": _MINISTRAL3,
            "vision_config": {
                "model_type": "pixtral",
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "head_dim": 8,
                "image_size": 28,
                "patch_size": 14,
            },
            "image_token_index": 10,
            "tie_word_embeddings": False,
        }
    },
    "phi3": {
        "window": _phi3(sliding_window=WINDOW),
        "longrope, long": _phi3(
            partial_rotary_factor=0.75,
            original_max_position_embeddings=32,
            rope_scaling={"type": "longrope", **_PHI3_FACTORS},
        ),
        "longrope, short": _phi3(
            partial_rotary_factor=0.75,
            original_max_position_embeddings=64,
            rope_scaling={"type": "longrope", **_PHI3_FACTORS},
        ),
    },
    "granite": {
        "multipliers": _config(
            "granite",
            "GraniteForCausalLM",
            embedding_multiplier=6.0,
            attention_multiplier=0.2,
            residual_multiplier=0.4,
            logits_scaling=2.5,
        ),
        "biases": _config("granite", "GraniteForCausalLM", attention_bias=True, mlp_bias=True),
    },
    "smollm3": {
        "every second layer without rope": _config(
            "smollm3", "SmolLM3ForCausalLM", no_rope_layer_interval=2
        ),
        "windows": _config(
            "smollm3",
            "SmolLM3ForCausalLM",
            no_rope_layers=[1, 0, 1],
            use_sliding_window=True,
            sliding_window=WINDOW,
            tie_word_embeddings=True,
        ),
    },
    "olmo2": {"norms after": _config("olmo2", "Olmo2ForCausalLM")},
    "olmo3": {
        "windows, yarn on full layers": _config(
            "olmo3",
            "Olmo3ForCausalLM",
            sliding_window=WINDOW,
            layer_types=_SLIDE_SLIDE_FULL,
            rope_theta=500000.0,
            rope_scaling={key: value for key, value in _YARN.items() if key != "rope_theta"},
        ),
        "rotation by type of layer": _config(
            "olmo3",
            "Olmo3ForCausalLM",
            sliding_window=WINDOW,
            layer_types=_SLIDE_SLIDE_FULL,
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
                "full_attention": _YARN,
            },
        ),
    },
    "seed_oss": {
        "biases": _config("seed_oss", "SeedOssForCausalLM", head_dim=16, attention_out_bias=True),
        "no biases": _config("seed_oss", "SeedOssForCausalLM", head_dim=16, attention_bias=False),
    },
    "cohere2": {
        "windows": _config(
            "cohere2",
            "Cohere2ForCausalLM",
            sliding_window=WINDOW,
            layer_types=_SLIDE_SLIDE_FULL,
            logit_scale=0.25,
            tie_word_embeddings=True,
        )
    },
    "exaone4": {
        "windows": _config(
            "exaone4", "Exaone4ForCausalLM", sliding_window=WINDOW, sliding_window_pattern=3
        ),
        "no windows": _config(
            "exaone4",
            "Exaone4ForCausalLM",
            sliding_window=None,
            layer_types=["full_attention"] * 3,
        ),
    },
    "starcoder2": {
        "window": _config("starcoder2", "Starcoder2ForCausalLM", sliding_window=WINDOW),
        "no biases": _config("starcoder2", "Starcoder2ForCausalLM", use_bias=False),
    },
    "gpt2": {
        "learned positions": {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": 96,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
    },
}
