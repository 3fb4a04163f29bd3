"""RoBERTa: BERT with positions offset by the padding id (Liu et al., 2019, arXiv:1907.11692)."""

from collections.abc import Mapping

from jaxserve.models.config import EncoderConfig
from jaxserve.models.hf_config import encoder_config
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.weights import HfTensor, encoder_tensors
from jaxserve.quantization.layout import Path


def config_from_hf(hf: Mapping[str, object]) -> EncoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf)
    padding = reader.optional_integer("pad_token_id", default=1, low=0)
    return encoder_config(reader, first_position=(padding or 0) + 1)


def hf_tensors(config: EncoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    return encoder_tensors(
        config, base="roberta", dense="classifier.dense", score="classifier.out_proj"
    )
