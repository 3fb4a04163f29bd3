"""SmolLM3: Llama with every fourth layer unrotated (NoPE, arXiv:2501.18795)."""

from collections.abc import Mapping

from jaxserve.errors import CheckpointError
from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_config import decoder_config, read_layer_types, windows_of
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.hf_rope import FULL, SLIDING, read_rope
from jaxserve.models.weights import llama_tensors as hf_tensors

__all__ = ["config_from_hf", "hf_tensors"]


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf, defaults={"rope_theta": 2e6, "tie_word_embeddings": True})
    has_rope = _rotated_layers(reader)
    window = reader.optional_integer("sliding_window")
    if not reader.flag("use_sliding_window", default=False):
        window = None
    # Layers without rotation slide, unless the file lists the types.
    kinds = tuple(FULL if rotated else SLIDING for rotated in has_rope)
    if reader.words("layer_types") is not None:
        kinds = read_layer_types(reader, full_every=1)
    attention_bias = reader.flag("attention_bias", default=False)
    rope = read_rope(reader, max_position=reader.integer("max_position_embeddings"))
    return decoder_config(
        reader,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=reader.flag("mlp_bias", default=False),
        kv_heads=4,
        sliding_windows=windows_of(kinds, window),
        ropes=tuple(rope if rotated else None for rotated in has_rope),
    )


def _rotated_layers(reader: HfConfig) -> tuple[bool, ...]:
    """Return which layers rotate queries and keys."""
    num_layers = reader.integer("num_hidden_layers")
    listed = reader.integers("no_rope_layers")
    if listed is None:
        interval = reader.integer("no_rope_layer_interval", default=4)
        return tuple((i + 1) % interval != 0 for i in range(num_layers))
    if len(listed) < num_layers:
        raise CheckpointError(
            f"no_rope_layers must have num_hidden_layers ({num_layers}) entries, got {len(listed)}"
        )
    return tuple(bool(rotated) for rotated in listed[:num_layers])
