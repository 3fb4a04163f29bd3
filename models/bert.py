"""BERT and compatible encoders (Devlin et al., 2019, arXiv:1810.04805)."""

from collections.abc import Mapping

from jaxserve.models.config import EncoderConfig
from jaxserve.models.hf_config import encoder_config
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.weights import HfTensor, encoder_tensors
from jaxserve.quantization.layout import Path


def config_from_hf(hf: Mapping[str, object]) -> EncoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    return encoder_config(HfConfig(hf), first_position=0)


def hf_tensors(config: EncoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    return encoder_tensors(config, base="bert", dense="bert.pooler.dense", score="classifier")
