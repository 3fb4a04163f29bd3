"""Gemma 2: soft caps, norms before and after attention and MLP, windows (arXiv:2408.00118)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from jaxserve.layers.rope import Rope
from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_config import (
    Modules,
    decoder_config,
    read_layer_types,
    windows_of,
    with_layers,
    with_mixers,
)
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.norm import OffsetRMSNorm
from jaxserve.models.weights import POST_NORMS, HfTensor, llama_tensors
from jaxserve.quantization.layout import Path

NAMES = {"hidden_act": "hidden_activation"}
_DEFAULTS = {
    "tie_word_embeddings": True,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_MODULES = Modules(norm=OffsetRMSNorm, final_norm=OffsetRMSNorm, hidden_act="gelu_pytorch_tanh")


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf, defaults=_DEFAULTS, names=NAMES)
    reader.only("use_bidirectional_attention", None, False)
    kinds = read_layer_types(reader, full_every=2)
    window = reader.integer("sliding_window", default=4096)
    return read_gemma(reader, sliding_windows=windows_of(kinds, window))


def read_gemma(
    reader: HfConfig,
    *,
    qk_norm: bool = False,
    sliding_windows: Sequence[int | None],
    ropes: Sequence[Rope] | None = None,
) -> DecoderConfig:
    """Read the keys that Gemma 2 and 3 share; keywords as in `decoder_config`."""
    bias = reader.flag("attention_bias", default=False)
    config = decoder_config(
        reader,
        modules=_MODULES,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=qk_norm,
        head_dim=256,
        kv_heads=4,
        sliding_windows=sliding_windows,
        ropes=ropes,
    )
    config = with_mixers(
        config,
        scale=reader.number("query_pre_attn_scalar", default=256) ** -0.5,
        soft_cap=reader.optional_number("attn_logit_softcapping"),
    )
    return replace(
        with_layers(config, lambda layer: replace(layer, post_norm=True)),
        embedding_multiplier=config.embed**0.5,
        logit_soft_cap=reader.optional_number("final_logit_softcapping"),
    )


def hf_tensors(config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    return llama_tensors(config, more=POST_NORMS)
