"""LFM2 with mixtures of experts selected by sigmoid scores (Liquid AI, arXiv:2511.23404)."""

from collections.abc import Mapping

from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_lfm2 import (
    DEFAULTS,
    NAMES,
    lfm2_config,
    lfm2_tensors,
    with_older_names,
)
from jaxserve.models.hf_moe import expert_tensors, read_routing, with_experts
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.moe import MixtureOfExperts
from jaxserve.models.weights import HfTensor
from jaxserve.quantization.layout import Path

_DEFAULTS = {**DEFAULTS, "num_experts": 32, "num_experts_per_tok": 4}
_PREFIX = "feed_forward."


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(with_older_names(hf), defaults=_DEFAULTS, names=NAMES)
    config = lfm2_config(reader)
    experts = MixtureOfExperts(
        routing=read_routing(
            reader,
            num_experts="num_experts",
            scoring="sigmoid",
            correction_bias=reader.flag("use_expert_bias", default=True),
            renormalize=reader.flag("norm_topk_prob", default=True),
            scaling_factor=reader.number("routed_scaling_factor", default=1.0),
        ),
        embed=config.embed,
        ffw=reader.integer("moe_intermediate_size", default=1792),
    )
    num_dense = reader.optional_integer("num_dense_layers", default=2, low=0) or 0
    return with_experts(config, experts, dense_layers=range(num_dense))


def hf_tensors(config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    more = {
        **expert_tensors(_PREFIX, gate="w1", up="w3", down="w2"),
        "mlp.router.correction_bias": [(f"{_PREFIX}expert_bias", "experts")],
    }
    return lfm2_tensors(config, more=more)
