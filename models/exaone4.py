"""EXAONE 4: norms after attention and MLP, global layers without rotation (arXiv:2507.11407)."""

from collections.abc import Mapping
from dataclasses import replace

from jaxserve.layers.rope import Rope
from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_config import (
    decoder_config,
    read_layer_types,
    windows_of,
    with_layers,
)
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.hf_rope import FULL, read_rope
from jaxserve.models.weights import POST_NORMS, HfTensor, llama_tensors
from jaxserve.quantization.layout import Path


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf, defaults={"rms_norm_eps": 1e-5})
    window = reader.optional_integer("sliding_window", default=4096)
    rope = read_rope(reader, max_position=reader.integer("max_position_embeddings"))
    if window is None:
        kinds: tuple[str, ...] = (FULL,) * reader.integer("num_hidden_layers")
        ropes: list[Rope | None] = [rope for _ in kinds]
    else:
        kinds = read_layer_types(reader, full_every=_period(reader))
        ropes = [None if kind == FULL else rope for kind in kinds]
    config = decoder_config(
        reader, qk_norm=True, sliding_windows=windows_of(kinds, window), ropes=ropes
    )
    return with_layers(config, lambda layer: replace(layer, pre_norm=False, post_norm=True))


def _period(reader: HfConfig) -> int:
    """Return the period of global layers, for files that do not list the types of layers."""
    # A string such as "LLLG" occurs in files with layer_types, which take precedence.
    if reader.words("layer_types") is not None:
        return 1
    return reader.integer("sliding_window_pattern", default=4)


def hf_tensors(config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    return llama_tensors(config, more=POST_NORMS)
