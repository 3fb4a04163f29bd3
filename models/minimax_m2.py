"""MiniMax-M2: experts selected by sigmoid scores with a correction bias, joint QK norms."""

from collections.abc import Mapping

from jaxserve.errors import CheckpointError
from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_config import decoder_config, with_mixers
from jaxserve.models.hf_moe import expert_tensors, read_routing, with_experts
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.moe import MixtureOfExperts
from jaxserve.models.weights import JOINT_QK_NORMS, HfTensor, llama_tensors
from jaxserve.quantization.layout import Path

_PREFIX = "block_sparse_moe."
_HEAD_DIM = 128


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf, defaults={"rope_theta": 5e6})
    reader.only("scoring_func", "sigmoid")
    reader.only("use_routing_bias", True)
    reader.only("use_qk_norm", True)
    reader.only("qk_norm_type", "per_layer")
    reader.only("shared_intermediate_size", 0, None)
    head_dim = reader.integer("head_dim", default=_HEAD_DIM)
    rotary_dim = reader.integer("rotary_dim", default=head_dim)
    if rotary_dim > head_dim:
        raise CheckpointError(f"rotary_dim must be at most head_dim ({head_dim}), got {rotary_dim}")
    config = decoder_config(
        reader,
        qk_norm=True,
        head_dim=_HEAD_DIM,
        partial_rotary_factor=rotary_dim / head_dim,
    )
    experts = MixtureOfExperts(
        routing=read_routing(
            reader, num_experts="num_local_experts", scoring="sigmoid", correction_bias=True
        ),
        embed=config.embed,
        ffw=reader.integer("intermediate_size"),
    )
    return with_experts(with_mixers(config, joint_qk_norm=True), experts)


def hf_tensors(config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    more = {
        **JOINT_QK_NORMS,
        **expert_tensors(_PREFIX, gate="w1", up="w3", down="w2"),
        "mlp.router.correction_bias": [(f"{_PREFIX}e_score_correction_bias", "experts")],
    }
    return llama_tensors(config, more=more)
