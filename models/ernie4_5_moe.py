"""ERNIE 4.5 with mixtures of experts: softmax routing with a correction bias, shared experts."""

from collections.abc import Mapping
from dataclasses import replace

from jaxserve.models.config import DecoderConfig, Dense
from jaxserve.models.hf_config import decoder_config
from jaxserve.models.hf_moe import expert_tensors, read_routing, shared_tensors, with_experts
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.mlp import MLP
from jaxserve.models.moe import MixtureOfExperts
from jaxserve.models.weights import HfTensor, interleaved_qkv, llama_tensors
from jaxserve.quantization.layout import Path

_DEFAULTS = {"rope_theta": 500000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf, defaults=_DEFAULTS)
    reader.only("use_bias", False, None)  # with it, the head has a bias too
    config = decoder_config(reader, kv_heads=4)
    ffw = reader.integer("moe_intermediate_size")
    num_shared = reader.optional_integer("moe_num_shared_experts", default=2, low=0) or 0
    experts = MixtureOfExperts(
        routing=read_routing(
            reader,
            num_experts="moe_num_experts",
            top_k="moe_k",
            correction_bias=True,
            least_sum=reader.number("moe_norm_min", default=1e-12),
        ),
        embed=config.embed,
        ffw=ffw,
        shared=Dense(module=MLP, ffw=ffw * num_shared) if num_shared else None,
    )
    # Tensors of multi-token prediction.
    config = replace(config, skipped_tensors=(*config.skipped_tensors, "model.mtp_"))
    dense_layers = set(range(config.num_layers)) - set(_expert_layers(reader, config.num_layers))
    return with_experts(config, experts, dense_layers=dense_layers)


def _expert_layers(reader: HfConfig, num_layers: int) -> list[int]:
    """Return the layers with experts: every `moe_layer_interval`th from start to end."""
    first = reader.optional_integer("moe_layer_start_index", default=1, low=0) or 0
    last = reader.optional_integer("moe_layer_end_index", default=-1, low=-1)
    last = num_layers - 1 if last in {-1, None} else last
    interval = reader.integer("moe_layer_interval", default=1)
    return [i for i in range(num_layers) if first <= i <= last and (i + 1) % interval == 0]


def hf_tensors(config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    more = {
        **interleaved_qkv(config),
        **expert_tensors(),
        **shared_tensors(),
        "mlp.router.correction_bias": [
            ("mlp.moe_statics.e_score_correction_bias", ", experts"),
        ],
    }
    return llama_tensors(config, more=more)
