"""OLMo 3: OLMo 2 with windows in three of four layers, and YaRN in the others."""

from collections.abc import Mapping

from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_config import read_layer_types, windows_of
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.hf_rope import read_ropes
from jaxserve.models.olmo2 import hf_tensors, read_olmo

__all__ = ["config_from_hf", "hf_tensors"]


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf, defaults={"rms_norm_eps": 1e-5, "rope_theta": 500000.0})
    kinds = read_layer_types(reader, full_every=4)
    ropes = read_ropes(
        reader,
        kinds,
        max_position=reader.integer("max_position_embeddings"),
        sliding_theta=reader.number("rope_theta"),
    )
    window = reader.integer("sliding_window", default=4096)
    return read_olmo(reader, sliding_windows=windows_of(kinds, window), ropes=ropes)
