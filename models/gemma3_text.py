"""Gemma 3: windows in five of six layers, with a rotation of their own (arXiv:2503.19786)."""

from collections.abc import Mapping
from dataclasses import replace

from jaxserve.layers.rope import LinearRope
from jaxserve.models.config import DecoderConfig
from jaxserve.models.gemma2 import NAMES, hf_tensors, read_gemma
from jaxserve.models.hf_config import both_ways, read_layer_types, windows_of
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.hf_rope import read_ropes

__all__ = ["config_from_hf", "hf_tensors"]

# Published files leave out what equals these defaults of transformers.
_DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf, defaults=_DEFAULTS, names=NAMES)
    # transformers reads this key and does not apply it.
    reader.only("attn_logit_softcapping", None)
    kinds = read_layer_types(reader, full_every=reader.integer("sliding_window_pattern", default=6))
    ropes = read_ropes(
        reader,
        kinds,
        max_position=reader.integer("max_position_embeddings"),
        sliding_theta=reader.number("rope_local_base_freq", default=10000.0),
    )
    # The files' 131,072 positions are those that the factor 8 has led to.
    ropes = tuple(
        replace(rope, is_included=True) if isinstance(rope, LinearRope) else rope for rope in ropes
    )
    window = reader.integer("sliding_window", default=4096)
    is_causal = not reader.flag("use_bidirectional_attention", default=False)
    if not is_causal:
        # The window of the file is that of both sides.
        window = window // 2 + 1
    config = read_gemma(
        reader, qk_norm=True, sliding_windows=windows_of(kinds, window), ropes=ropes
    )
    return config if is_causal else both_ways(config)
