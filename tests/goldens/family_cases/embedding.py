"""Models of embeddings in which tokens attend to later ones; their goldens are hidden states."""

from tests.goldens.checkpoints import WINDOW, HfConfig

_MODERNBERT: HfConfig = {
    "architectures": ["ModernBertModel"],
    "model_type": "modernbert",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "local_attention": 2 * WINDOW,
    "global_rope_theta": 1000.0,
    "local_rope_theta": 50.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}

FAMILIES: dict[str, dict[str, HfConfig]] = {
    "modernbert": {
        "windows": _MODERNBERT,
        "biases": {**_MODERNBERT, "norm_bias": True, "attention_bias": True, "mlp_bias": True},
    },
}
