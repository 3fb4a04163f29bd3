"""Nemotron-H and Nemotron 3: layers of Mamba2, attention, MLP or experts (arXiv:2504.03624)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxserve.errors import CheckpointError
from jaxserve.layers.activation import ACTIVATIONS
from jaxserve.models.config import DecoderConfig, Dense, LayerConfig
from jaxserve.models.forward import ForwardContext
from jaxserve.models.hf_config import Modules, decoder_config
from jaxserve.models.hf_mamba2 import (
    MAMBA,
    heads_of_groups,
    mamba2_tensors,
    mamba2_widths,
    read_kinds,
)
from jaxserve.models.hf_moe import read_routing
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.hf_rope import FULL
from jaxserve.models.mamba2 import Mamba2
from jaxserve.models.mlp import UngatedMLP
from jaxserve.models.moe import MixtureOfExperts
from jaxserve.models.multimodal import without_parts
from jaxserve.models.parts import Mixer, NoFeedForward, NoMixer
from jaxserve.models.weights import LAYER, HfTensor, Parts, llama_tensors
from jaxserve.quantization.layout import Path

_MLP, _EXPERTS = "mlp", "moe"
_HIDDEN_ACT = "relu2"
# Letters of hybrid_override_pattern.
_LETTERS = {"M": MAMBA, "*": FULL, "-": _MLP, "E": _EXPERTS}
_NAMES = {"rms_norm_eps": "layer_norm_epsilon", "hidden_act": "mlp_hidden_act"}
_DEFAULTS = {
    "layer_norm_epsilon": 1e-5,
    "mlp_hidden_act": _HIDDEN_ACT,
    "intermediate_size": 21504,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
}


class MixerBlock(nnx.Module):
    """x + mixer(norm(x))."""

    def __init__(self, config: DecoderConfig, layer: LayerConfig) -> None:
        """Declare the layer's parameters."""
        self.attention_norm = config.norm(config.norm_eps, embed=config.embed)
        self.attention = layer.mixer.module(config, layer.mixer)

    def __call__[Cache](
        self, x: Float[Array, "tokens embed"], cache: Cache, context: ForwardContext[Cache]
    ) -> tuple[Float[Array, "tokens embed"], Cache]:
        """Return the residual stream after this layer, and the layer's cache."""
        with jax.named_scope("attention"):
            inner = self.attention_norm(x)
            out, cache = self.attention(inner, cache, context.under("attention"))
            return context.tap("out", x + context.tap("attention.out", out)), cache


class FeedForwardBlock(nnx.Module):
    """x + feed_forward(norm(x)); the layer has no cache."""

    def __init__(self, config: DecoderConfig, layer: LayerConfig) -> None:
        """Declare the layer's parameters."""
        self.mlp_norm = config.norm(config.norm_eps, embed=config.embed)
        self.mlp = layer.feed_forward.module(config, layer.feed_forward)

    def __call__[Cache](
        self, x: Float[Array, "tokens embed"], cache: Cache, context: ForwardContext[Cache]
    ) -> tuple[Float[Array, "tokens embed"], Cache]:
        """Return the residual stream after this layer, and the cache as it is."""
        with jax.named_scope("mlp"):
            out = context.tap("mlp.out", self.mlp(self.mlp_norm(x), context.under("mlp")))
            return context.tap("out", x + out), cache


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    kinds = _kinds(HfConfig(hf))
    reader = HfConfig({**hf, "num_hidden_layers": len(kinds)}, defaults=_DEFAULTS, names=_NAMES)
    reader.only("attention_bias", False, None)
    reader.only("mamba_proj_bias", False, None)
    reader.only("residual_in_fp32", False, None)
    reader.only("sliding_window", None)
    mlp_bias = reader.flag("mlp_bias", default=False)
    config = decoder_config(
        reader,
        modules=Modules(feed_forward=UngatedMLP, hidden_act=_HIDDEN_ACT),
        mlp_bias=mlp_bias,
        head_dim=128,
        kv_heads=8,
        ropes=(None,) * len(kinds),
    )
    dense = config.layers[0].feed_forward
    assert isinstance(dense, Dense)
    parts = {FULL: config.layers[0].mixer, _MLP: dense}
    if MAMBA in kinds:
        parts[MAMBA] = _mamba(reader)
    if _EXPERTS in kinds:
        parts[_EXPERTS] = _experts(reader, config.embed, dense)
    layers = tuple(_layer(kind, parts[kind]) for kind in kinds)
    # Layers that predict several tokens at once are not served.
    return without_parts(replace(config, layers=layers), "mtp")


def _kinds(reader: HfConfig) -> tuple[str, ...]:
    """Return the type of each layer: a list under either name, or a letter for each."""
    for key in ("layers_block_type", "layer_types"):
        kinds = read_kinds(reader, key, known=tuple(_LETTERS.values()))
        if kinds:
            return kinds
    pattern = reader.word("hybrid_override_pattern")
    if not pattern:
        raise CheckpointError("config.json lacks layers_block_type or hybrid_override_pattern")
    unknown = set(pattern) - _LETTERS.keys()
    if unknown:
        raise CheckpointError(
            f"config.json has hybrid_override_pattern with {min(unknown)!r}; jaxserve supports"
            f" {' '.join(_LETTERS)}"
        )
    return tuple(_LETTERS[letter] for letter in pattern)


def _layer(kind: str, part: Any) -> LayerConfig:
    if kind in {FULL, MAMBA}:
        mixer: Mixer = part
        return LayerConfig(block=MixerBlock, mixer=mixer, feed_forward=NoFeedForward())
    return LayerConfig(block=FeedForwardBlock, mixer=NoMixer(), feed_forward=part)


def _mamba(reader: HfConfig) -> Mamba2:
    reader.only("mamba_hidden_act", "silu")
    heads = reader.integer("mamba_num_heads", default=128)
    groups = reader.integer("n_groups", default=8)
    return Mamba2(
        groups=groups,
        heads=heads_of_groups(heads, groups, names=("mamba_num_heads", "n_groups")),
        head_dim=reader.integer("mamba_head_dim", default=64),
        state_dim=reader.integer("ssm_state_size", default=128),
        taps=reader.integer("conv_kernel", default=4, low=2),
        bias=reader.flag("use_bias", default=False),
        conv_bias=reader.flag("use_conv_bias", default=True),
        norms_groups=True,
        # As transformers computes prompts, whatever time_step_limit is.
        least_step=reader.number("time_step_min", default=0.001),
    )


def _experts(reader: HfConfig, embed: int, dense: Dense) -> MixtureOfExperts:
    latent = reader.optional_integer("moe_latent_size")
    if latent is not None:
        reader.only("mlp_bias", False, None)  # with it, the latent's projections have biases
    return MixtureOfExperts(
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
        embed=embed,
        ffw=reader.integer("moe_intermediate_size", default=7688),
        activation=ACTIVATIONS[_HIDDEN_ACT],
        is_gated=False,
        shared=replace(
            dense, ffw=reader.integer("moe_shared_expert_intermediate_size", default=7688)
        ),
        latent=latent,
    )


_TOP: Parts = {
    "embedding": [("model.embeddings.weight", "vocab, embed")],
    "final_norm.weight": [("model.norm_f.weight", "embed")],
}


def hf_tensors(config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    attention = {
        path: [(name.replace("self_attn.", "mixer."), dims) for name, dims, *_ in LAYER[path]]
        for path in ("attention.qkv", "attention.o")
    }
    expert = "mixer.experts.{experts}."
    more: Parts = {
        **attention,
        **mamba2_tensors(config, "mixer."),
        "attention_norm.weight": [("norm.weight", "embed")],
        "mlp_norm.weight": [("norm.weight", "embed")],
        **_mlp_tensors("mlp.", "mixer."),
        **_mlp_tensors("mlp.shared.", "mixer.shared_experts."),
        "mlp.router.weight": [("mixer.gate.weight", "experts, embed")],
        "mlp.router.correction_bias": [("mixer.gate.e_score_correction_bias", "experts")],
        "mlp.experts.up": [(f"{expert}up_proj.weight", "ffw, embed")],
        "mlp.experts.down": [(f"{expert}down_proj.weight", "embed, ffw")],
        "mlp.latent_in": [("mixer.fc1_latent_proj.weight", "latent, embed")],
        "mlp.latent_out": [("mixer.fc2_latent_proj.weight", "embed, latent")],
    }
    return llama_tensors(config, more=more, top=_TOP, widths=mamba2_widths(config))


def _mlp_tensors(path: str, prefix: str) -> Parts:
    return {
        f"{path}up": [(f"{prefix}up_proj.weight", "ffw, embed")],
        f"{path}up_bias": [(f"{prefix}up_proj.bias", "ffw")],
        f"{path}down": [(f"{prefix}down_proj.weight", "embed, ffw")],
        f"{path}down_bias": [(f"{prefix}down_proj.bias", "embed")],
    }
