"""GLM-4.7 Flash: DeepSeek-V3's layers, with the dense ones listed (GLM-4.5, arXiv:2508.06471)."""

from collections.abc import Mapping

from jaxserve.errors import CheckpointError
from jaxserve.models.config import DecoderConfig
from jaxserve.models.hf_latent import groups_of, latent_config, with_deepseek_experts
from jaxserve.models.hf_latent import latent_tensors as hf_tensors
from jaxserve.models.hf_reader import HfConfig

__all__ = ["config_from_hf", "hf_tensors"]


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf, defaults={"q_lora_rank": 768, "rms_norm_eps": 1e-5})
    reader.only("pretraining_tp", 1, None)
    reader.only("topk_method", "noaux_tc")
    return with_deepseek_experts(
        latent_config(reader),
        reader,
        dense_layers=_dense_layers(reader),
        scoring="sigmoid",
        correction_bias=True,
        renormalize=reader.flag("norm_topk_prob", default=True),
        **groups_of(reader),
    )


def _dense_layers(reader: HfConfig) -> tuple[int, ...]:
    """Return the layers without experts: those of mlp_layer_types, by default the first."""
    kinds = reader.words("mlp_layer_types")
    if kinds is None:
        reader.only("first_k_dense_replace", 1, None)
        return (0,)
    if len(kinds) != reader.integer("num_hidden_layers") or set(kinds) - {"dense", "sparse"}:
        raise CheckpointError(
            "mlp_layer_types must name num_hidden_layers layers as dense or sparse, got"
            f" {list(kinds)}"
        )
    return tuple(i for i, kind in enumerate(kinds) if kind == "dense")
