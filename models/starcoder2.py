"""StarCoder2: layer norms, biases, an MLP without a gate (arXiv:2402.19173)."""

from collections.abc import Mapping

from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_config import Modules, decoder_config
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.mlp import UngatedMLP
from jaxserve.models.norm import LayerNorm
from jaxserve.models.weights import HfTensor, llama_tensors
from jaxserve.quantization.layout import Path

_MODULES = Modules(
    feed_forward=UngatedMLP,
    norm=LayerNorm,
    final_norm=LayerNorm,
    hidden_act="gelu_pytorch_tanh",
)
_TENSORS = {
    "mlp.up": [("mlp.c_fc.weight", "ffw, embed")],
    "mlp.up_bias": [("mlp.c_fc.bias", "ffw")],
    "mlp.down": [("mlp.c_proj.weight", "embed, ffw")],
    "mlp.down_bias": [("mlp.c_proj.bias", "embed")],
}


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(
        hf,
        defaults={"norm_epsilon": 1e-5, "tie_word_embeddings": True},
        names={"rms_norm_eps": "norm_epsilon"},
    )
    windows = (reader.optional_integer("sliding_window"),) * reader.integer("num_hidden_layers")
    bias = reader.flag("use_bias", default=True)
    return decoder_config(
        reader,
        modules=_MODULES,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        kv_heads=2,
        sliding_windows=windows,
    )


def hf_tensors(config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    return llama_tensors(config, more=_TENSORS)
