"""LFM2: gated short convolutions, with attention in some layers (Liquid AI, arXiv:2511.23404)."""

from collections.abc import Mapping
from dataclasses import replace

from jaxserve.models.config import DecoderConfig, Dense
from jaxserve.models.hf_config import with_layers
from jaxserve.models.hf_lfm2 import DEFAULTS, NAMES, lfm2_config, with_older_names
from jaxserve.models.hf_lfm2 import lfm2_tensors as hf_tensors
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.mlp import MLP

__all__ = ["config_from_hf", "hf_tensors"]


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(with_older_names(hf), defaults=DEFAULTS, names=NAMES)
    dense = Dense(module=MLP, ffw=_ffw(reader))
    return with_layers(lfm2_config(reader), lambda layer: replace(layer, feed_forward=dense))


def _ffw(reader: HfConfig) -> int:
    """Return the inner width of the MLPs: by default two thirds of the file's, rounded up."""
    ffw = reader.integer("intermediate_size")
    if not reader.flag("block_auto_adjust_ff_dim", default=True):
        return ffw
    ffw = int(reader.number("block_ffn_dim_multiplier", default=1.0) * int(2 * ffw / 3))
    multiple = reader.integer("block_multiple_of", default=256)
    return -(-ffw // multiple) * multiple
