"""GLM-4.5 to 4.7: sigmoid routing with shared experts, partial rotation (arXiv:2508.06471)."""

from collections.abc import Mapping
from dataclasses import replace

from jaxserve.models.config import DecoderConfig, Dense
from jaxserve.models.hf_config import decoder_config
from jaxserve.models.hf_moe import expert_tensors, read_routing, shared_tensors, with_experts
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.mlp import MLP
from jaxserve.models.moe import MixtureOfExperts
from jaxserve.models.weights import HfTensor, llama_tensors
from jaxserve.quantization.layout import Path


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf, defaults={"rms_norm_eps": 1e-5, "num_nextn_predict_layers": 1})
    config = decoder_config(
        reader,
        qkv_bias=reader.flag("attention_bias", default=False),
        qk_norm=reader.flag("use_qk_norm", default=False),
        partial_rotary_factor=0.5,
    )
    ffw = reader.integer("moe_intermediate_size")
    experts = MixtureOfExperts(
        routing=read_routing(
            reader,
            num_experts="n_routed_experts",
            scoring="sigmoid",
            correction_bias=True,
            renormalize=reader.flag("norm_topk_prob", default=True),
            scaling_factor=reader.number("routed_scaling_factor", default=1.0),
            groups=reader.integer("n_group", default=1),
            top_groups=reader.integer("topk_group", default=1),
        ),
        embed=config.embed,
        ffw=ffw,
        shared=Dense(module=MLP, ffw=ffw * reader.integer("n_shared_experts", default=1)),
    )
    num_dense = reader.optional_integer("first_k_dense_replace", default=1, low=0) or 0
    num_extra = reader.optional_integer("num_nextn_predict_layers", low=0) or 0
    first = config.num_layers
    extra = tuple(f"model.layers.{i}." for i in range(first, first + num_extra))
    config = replace(config, skipped_tensors=config.skipped_tensors + extra)
    return with_experts(config, experts, dense_layers=range(num_dense))


def hf_tensors(config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    more = {
        **expert_tensors(),
        **shared_tensors(),
        "mlp.router.correction_bias": [("mlp.gate.e_score_correction_bias", "experts")],
    }
    return llama_tensors(config, more=more)
