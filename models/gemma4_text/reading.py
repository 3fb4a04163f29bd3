"""Read Gemma 4's `config.json`, and name its tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from jaxserve.errors import CheckpointError
from jaxserve.layers.activation import Glu
from jaxserve.models.config import Dense, GroupedQuery, LayerConfig
from jaxserve.models.gemma4_text.description import (
    HIDDEN_ACT,
    Gemma4Config,
    Gemma4Experts,
    Gemma4Query,
)
from jaxserve.models.gemma4_text.modules import (
    Gemma4Attention,
    Gemma4Block,
    Gemma4Decoder,
    Gemma4ExpertsBlock,
    ParallelExperts,
)
from jaxserve.models.hf_config import Modules, decoder_config, read_layer_types, windows_of
from jaxserve.models.hf_moe import read_routing, stacked_tensors
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.hf_rope import FULL, read_ropes
from jaxserve.models.weights import LAYER, POST_NORMS, HfTensor, Parts, llama_tensors
from jaxserve.quantization.layout import Path

_DEFAULTS: Mapping[str, object] = {
    "tie_word_embeddings": True,
    "rope_parameters": {
        "full_attention": {
            "rope_type": "proportional",
            "partial_rotary_factor": 0.25,
            "rope_theta": 1e6,
        }
    },
}
_MODULES = Modules(
    block=Gemma4Block,
    attention=Gemma4Attention,
    architecture=Gemma4Decoder,
    hidden_act=HIDDEN_ACT,
)
_TOP: Parts = {
    "input_embedding": [("model.embed_tokens_per_layer.weight", "vocab, inputs")],
    "input_projection": [("model.per_layer_model_projection.weight", "inputs, embed")],
    "input_norm.weight": [("model.per_layer_projection_norm.weight", "input")],
}
_LAYER: Parts = {
    **POST_NORMS,
    "scale": [("layer_scalar", "scalar")],
    "input_gate": [("per_layer_input_gate.weight", "input, embed")],
    "input_out": [("per_layer_projection.weight", "embed, input")],
    "input_norm.weight": [("post_per_layer_input_norm.weight", "embed")],
    "attention.q": [("self_attn.q_proj.weight", "heads head_dim, embed")],
    "attention.k": [("self_attn.k_proj.weight", "kv_heads head_dim, embed")],
    "attention.v": [("self_attn.v_proj.weight", "kv_heads head_dim, embed")],
    "attention.q_bias": [("self_attn.q_proj.bias", "heads head_dim")],
    "attention.k_bias": [("self_attn.k_proj.bias", "kv_heads head_dim")],
    "attention.v_bias": [("self_attn.v_proj.bias", "kv_heads head_dim")],
}
# Tensors of layers with experts.
_EXPERTS: Parts = {
    "mlp.dense.gate_up": LAYER["mlp.gate_up"],
    "mlp.dense.down": LAYER["mlp.down"],
    "mlp.dense_norm.weight": [("pre_feedforward_layernorm.weight", "embed")],
    "mlp.dense_post_norm.weight": [("post_feedforward_layernorm_1.weight", "embed")],
    "mlp.experts_norm.weight": [("pre_feedforward_layernorm_2.weight", "embed")],
    "mlp.experts_post_norm.weight": [("post_feedforward_layernorm_2.weight", "embed")],
    "mlp.router.weight": [("router.proj.weight", "experts, embed")],
    "mlp.router.scale": [("router.scale", "embed")],
    "mlp.router.expert_scale": [("router.per_expert_scale", "experts")],
}


def config_from_hf(hf: Mapping[str, object]) -> Gemma4Config:
    """Read a `config.json`; raises CheckpointError naming a key that is missing or unsupported."""
    reader = HfConfig(hf, defaults=_DEFAULTS, names={"hidden_act": "hidden_activation"})
    reader.only("use_bidirectional_attention", None, "vision")
    kinds = read_layer_types(reader, full_every=6)
    # As in transformers, whatever the file says of it.
    kinds = (*kinds[:-1], FULL)
    bias = reader.flag("attention_bias", default=False)
    config = decoder_config(
        reader,
        modules=_MODULES,
        qkv_bias=bias,
        output_bias=bias,
        head_dim=256,
        kv_heads=4,
        sliding_windows=windows_of(kinds, reader.integer("sliding_window", default=512)),
        ropes=read_ropes(
            reader,
            kinds,
            max_position=reader.integer("max_position_embeddings"),
            sliding_theta=10000.0,
            partial_rotary_factor=1.0,
        ),
    )
    layers = _layers(reader, kinds, config.layers)
    if reader.flag("enable_moe_block", default=False):
        layers = _with_experts(reader, config.embed, layers)
    own = {
        "layers": layers,
        "embedding_multiplier": config.embed**0.5,
        "logit_soft_cap": reader.optional_number("final_logit_softcapping"),
        "skipped_tensors": _shared_keys(layers),
        "input_width": _input_width(reader, config.vocab_size),
    }
    return Gemma4Config(**_fields(config) | own)


def _fields(description: Any) -> dict[str, Any]:
    return {each.name: getattr(description, each.name) for each in fields(description)}


def _input_width(reader: HfConfig, vocab_size: int) -> int:
    width = reader.optional_integer("hidden_size_per_layer_input", default=256, low=0) or 0
    if width:
        reader.only("vocab_size_per_layer_input", vocab_size)
    return width


def _layers(
    reader: HfConfig, kinds: Sequence[str], layers: Sequence[LayerConfig]
) -> tuple[LayerConfig, ...]:
    """Return the layers with what Gemma 4 adds to the keys that decoders share."""
    num_shared = reader.optional_integer("num_kv_shared_layers", default=0, low=0) or 0
    first_shared = len(layers) - num_shared
    is_wide = reader.flag("use_double_wide_mlp", default=False)
    keys_are_values = reader.flag("attention_k_eq_v", default=False)
    found: list[LayerConfig] = []
    for i, (kind, layer) in enumerate(zip(kinds, layers, strict=True)):
        mixer, feed_forward = layer.mixer, layer.feed_forward
        assert isinstance(mixer, GroupedQuery)
        assert isinstance(feed_forward, Dense)
        shares = None
        if i >= first_shared:
            owners = [j for j in range(first_shared) if kinds[j] == kind]
            if not owners:
                raise CheckpointError(
                    f"num_kv_shared_layers must leave a layer of each type, got {num_shared}:"
                    f" no earlier layer is of the type {kind}"
                )
            shares = owners[-1]
            feed_forward = replace(feed_forward, ffw=feed_forward.ffw * (2 if is_wide else 1))
        known = _fields(mixer) | _sizes(reader, i, kind) | {"scale": 1.0, "shares": shares}
        own = Gemma4Query(**known, keys_are_values=keys_are_values and kind == FULL)
        found.append(replace(layer, mixer=own, feed_forward=feed_forward, post_norm=True))
    return tuple(found)


def _with_experts(
    reader: HfConfig, embed: int, layers: Sequence[LayerConfig]
) -> tuple[LayerConfig, ...]:
    """Return the layers with experts beside their dense feed-forwards."""
    routing = read_routing(reader, num_experts="num_experts", top_k="top_k_experts")
    ffw = reader.integer("moe_intermediate_size")
    found: list[LayerConfig] = []
    for layer in layers:
        assert isinstance(layer.feed_forward, Dense)
        experts = Gemma4Experts(
            routing=routing,
            embed=embed,
            ffw=ffw,
            activation=Glu(HIDDEN_ACT),
            dense=layer.feed_forward,
            parallel=ParallelExperts,
        )
        found.append(replace(layer, block=Gemma4ExpertsBlock, feed_forward=experts))
    return tuple(found)


def _sizes(reader: HfConfig, layer: int, kind: str) -> dict[str, int]:
    """Return the sizes of a layer's heads that differ from those of sliding layers."""
    listed = reader.section("per_layer_config")
    if listed is not None:
        own = listed.section(str(layer)) or HfConfig({})
        names = {"head_dim": "head_dim", "kv_heads": "num_key_value_heads"}
    elif kind == FULL:
        own = HfConfig(
            {
                "head_dim": reader.integer("global_head_dim", default=512),
                "kv_heads": reader.optional_integer("num_global_key_value_heads")
                if reader.flag("attention_k_eq_v", default=False)
                else None,
            }
        )
        names = {"head_dim": "head_dim", "kv_heads": "kv_heads"}
    else:
        return {}
    sizes = {name: own.optional_integer(key) for name, key in names.items()}
    return {name: size for name, size in sizes.items() if size is not None}


def _shared_keys(layers: Sequence[LayerConfig]) -> tuple[str, ...]:
    """Return the prefixes of tensors that layers with shared keys and values do not need."""
    return tuple(
        f"model.layers.{i}.self_attn.{part}."
        for i, layer in enumerate(layers)
        if isinstance(layer.mixer, Gemma4Query) and layer.mixer.shares is not None
        for part in ("k_proj", "v_proj", "k_norm", "v_norm")
    )


def hf_tensors(config: Gemma4Config) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter."""
    more = {**_LAYER, **_EXPERTS, **stacked_tensors(config, prefix="")}
    return llama_tensors(config, more=more, top=_TOP)
