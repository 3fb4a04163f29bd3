"""OLMo 2: norms after attention and MLP, queries and keys normalized (arXiv:2501.00656)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from jaxserve.layers.rope import Rope
from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_config import decoder_config, with_layers, with_mixers
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.weights import JOINT_QK_NORMS, POST_NORMS, HfTensor, llama_tensors
from jaxserve.quantization.layout import Path


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    return read_olmo(HfConfig(hf, defaults={"rms_norm_eps": 1e-5}))


def read_olmo(
    reader: HfConfig,
    *,
    sliding_windows: Sequence[int | None] | None = None,
    ropes: Sequence[Rope] | None = None,
) -> DecoderConfig:
    """Read the keys that OLMo 2 and 3 share; keywords as in `decoder_config`."""
    attention_bias = reader.flag("attention_bias", default=False)
    config = decoder_config(
        reader,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        qk_norm=True,
        sliding_windows=sliding_windows,
        ropes=ropes,
    )
    config = with_mixers(config, joint_qk_norm=True)
    return with_layers(config, lambda layer: replace(layer, pre_norm=False, post_norm=True))


def hf_tensors(config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    return llama_tensors(config, more={**POST_NORMS, **JOINT_QK_NORMS})
