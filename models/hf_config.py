"""Read a Hugging Face `config.json`, and reject unsupported values by name.

Keys and defaults are those of transformers 5.23.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxserve.errors import CheckpointError
from jaxserve.layers.rope import Rope
from jaxserve.models.attention import Attention
from jaxserve.models.config import (
    DecoderConfig,
    Dense,
    EncoderConfig,
    GroupedQuery,
    LayerConfig,
    Norm,
)
from jaxserve.models.decoder import Block, Decoder
from jaxserve.models.encoder import Encoder, EncoderBlock
from jaxserve.models.hf_reader import HfConfig
from jaxserve.models.hf_rope import FULL, SLIDING, read_rope
from jaxserve.models.mlp import MLP, UngatedMLP
from jaxserve.models.norm import LayerNorm, RMSNorm


@dataclass(frozen=True, kw_only=True)
class Modules:
    """Modules of a decoder family; Llama's by default.

    hidden_act: value that `config.json` must have for this feed-forward.
    """

    block: Callable[[Any, LayerConfig], Any] = Block
    attention: Callable[[Any, Any], Any] = Attention
    feed_forward: Callable[[Any, Dense], Any] = MLP
    norm: Norm = RMSNorm
    final_norm: Norm = RMSNorm
    architecture: Callable[[Any], Any] = Decoder
    hidden_act: str = "silu"


_LLAMA = Modules()


def decoder_config(
    reader: HfConfig,
    *,
    modules: Modules = _LLAMA,
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    head_dim: int | None = None,
    kv_heads: int | None = None,
    sliding_windows: Sequence[int | None] | None = None,
    ropes: Sequence[Rope | None] | None = None,
    partial_rotary_factor: float | None = None,
) -> DecoderConfig:
    """Read the keys that decoder families share. Keywords are the family's fixed values.

    head_dim, kv_heads and partial_rotary_factor are defaults for absent keys (otherwise
    embed / heads, heads, and whole heads). sliding_windows, ropes: of each layer, by default no
    windows and the one rotation in the file.
    """
    reader.only("hidden_act", modules.hidden_act)
    embed, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    kv_heads = reader.optional_integer("num_key_value_heads", default=kv_heads) or heads
    head_dim = reader.optional_integer("head_dim", default=head_dim)
    if head_dim is None and embed % heads:
        raise CheckpointError(
            f"hidden_size must be a multiple of num_attention_heads, got {embed} and {heads}"
        )
    head_dim = head_dim or embed // heads
    num_layers = reader.integer("num_hidden_layers")
    max_position = reader.integer("max_position_embeddings")
    _check_heads(heads, kv_heads)
    if ropes is None:
        ropes = (
            read_rope(
                reader, max_position=max_position, partial_rotary_factor=partial_rotary_factor
            ),
        ) * num_layers
    for rope in ropes:
        _check_rotary_dim(rope, head_dim)
    mixer = GroupedQuery(
        module=modules.attention,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=None,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        qk_norm=qk_norm,
    )
    feed_forward = Dense(
        module=modules.feed_forward,
        ffw=reader.integer("intermediate_size"),
        bias=mlp_bias,
        activation=modules.hidden_act,
    )
    return DecoderConfig(
        model_type=reader.word("model_type") or "",
        vocab_size=reader.integer("vocab_size"),
        embed=embed,
        norm_eps=reader.number("rms_norm_eps", default=1e-6),
        norm=modules.norm,
        final_norm=modules.final_norm,
        layers=tuple(
            LayerConfig(
                block=modules.block,
                mixer=replace(mixer, sliding_window=window, rope=rope),
                feed_forward=feed_forward,
            )
            for window, rope in zip(sliding_windows or (None,) * num_layers, ropes, strict=True)
        ),
        max_position=max_position,
        tied_embeddings=reader.flag("tie_word_embeddings", default=False),
        num_labels=read_num_labels(reader, default="ForCausalLM"),
        architecture=modules.architecture,
    )


def encoder_config(reader: HfConfig, *, first_position: int) -> EncoderConfig:
    """Read the keys that BERT families share; first_position: as in EncoderConfig."""
    reader.only("hidden_act", "gelu")
    reader.only("position_embedding_type", "absolute", None)
    reader.only("is_decoder", False, None)
    embed, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    if embed % heads:
        raise CheckpointError(
            f"hidden_size must be a multiple of num_attention_heads, got {embed} and {heads}"
        )
    num_labels = read_num_labels(reader, default="Model")
    if num_labels is None:
        raise CheckpointError(
            "config.json has an architecture ...ForCausalLM; jaxserve supports encoders that give"
            " embeddings (...Model) and scores (...ForSequenceClassification)"
        )
    layer = LayerConfig(
        block=EncoderBlock,
        mixer=GroupedQuery(
            module=Attention,
            heads=heads,
            kv_heads=heads,
            head_dim=embed // heads,
            scale=(embed // heads) ** -0.5,
            rope=None,
            qkv_bias=True,
            output_bias=True,
            is_causal=False,
        ),
        feed_forward=Dense(
            module=UngatedMLP,
            ffw=reader.integer("intermediate_size"),
            bias=True,
            activation="gelu",
        ),
        pre_norm=False,
    )
    return EncoderConfig(
        model_type=reader.word("model_type") or "",
        vocab_size=reader.integer("vocab_size"),
        embed=embed,
        norm_eps=reader.number("layer_norm_eps", default=1e-12),
        norm=LayerNorm,
        layers=(layer,) * reader.integer("num_hidden_layers"),
        num_positions=reader.integer("max_position_embeddings"),
        first_position=first_position,
        num_segments=reader.integer("type_vocab_size", default=2),
        num_labels=num_labels,
        architecture=Encoder,
    )


def _check_heads(heads: int, kv_heads: int) -> None:
    if heads % kv_heads:
        raise CheckpointError(
            f"num_attention_heads must be a multiple of num_key_value_heads, got {heads} and"
            f" {kv_heads}"
        )


def _check_rotary_dim(rope: Rope | None, head_dim: int) -> None:
    rotary_dim = 2 if rope is None else rope.rotary_dim(head_dim)
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        raise CheckpointError(
            f"head_dim * partial_rotary_factor must be even and at most head_dim ({head_dim}), got"
            f" {rotary_dim}"
        )


def with_mixers(config: DecoderConfig, **fields: Any) -> DecoderConfig:
    """Return the model with fields of every layer's mixer replaced."""
    return with_layers(config, lambda layer: replace(layer, mixer=_replaced(layer.mixer, fields)))


def with_layers(
    config: DecoderConfig, change: Callable[[LayerConfig], LayerConfig]
) -> DecoderConfig:
    """Return the model with every layer's description changed."""
    return replace(config, layers=tuple(map(change, config.layers)))


def both_ways(config: DecoderConfig) -> DecoderConfig:
    """Return the model with tokens that attend to later ones too.

    Raises CheckpointError if it has a language model head, which would see the next token.
    """
    if config.num_labels is None:
        raise CheckpointError(
            "config.json has an architecture ...ForCausalLM with attention to later tokens;"
            " jaxserve supports ...Model and ...ForSequenceClassification"
        )
    return with_mixers(replace(config, is_causal=False), is_causal=False)


def _replaced(description: Any, fields: dict[str, Any]) -> Any:
    return replace(description, **fields)


def read_layer_types(
    reader: HfConfig, *, full_every: int, known: Sequence[str] = (SLIDING, FULL)
) -> tuple[str, ...]:
    """Return the type of each layer: `layer_types`, whose values must be `known`.

    full_every: period of the layers with full attention if the key is absent. The others slide.
    """
    num_layers = reader.integer("num_hidden_layers")
    kinds = reader.words("layer_types")
    if kinds is None:
        return tuple(SLIDING if (i + 1) % full_every else FULL for i in range(num_layers))
    if len(kinds) != num_layers:
        raise CheckpointError(
            f"layer_types must name num_hidden_layers ({num_layers}) layers, got {len(kinds)}"
        )
    for kind in kinds:
        if kind not in known:
            raise CheckpointError(
                f"config.json has layer_types with {kind!r}; jaxserve supports"
                f" {' and '.join(known)}"
            )
    return kinds


def windows_of(layer_types: Sequence[str], window: int | None) -> tuple[int | None, ...]:
    """Return the window of each layer; sliding layers have `window`."""
    return tuple(window if kind == SLIDING else None for kind in layer_types)


def read_num_labels(reader: HfConfig, *, default: str) -> int | None:
    """Return the labels of the head: 0 for a model without a head, None for a language model.

    default: architecture of a config.json that names none.
    """
    for name in reader.words("architectures") or (default,):
        if name.endswith("ForSequenceClassification"):
            return len(reader.labels())
        if name.endswith("LMHeadModel"):
            return None
        if name.endswith(("Model", "ForMaskedLM")):
            return 0
        if not name.endswith("ForCausalLM"):
            raise CheckpointError(
                f"config.json has architectures = [{name!r}]; jaxserve supports ...ForCausalLM,"
                " ...ForSequenceClassification and ...Model"
            )
    return None


def qwen_windows(reader: HfConfig) -> tuple[int | None, ...]:
    """Return each layer's window, from the keys of Qwen2 and Qwen3.

    `layer_types` lists the layers. If it is absent, layers from `max_window_layers` on have a
    window. There are no windows unless `use_sliding_window` is true.
    """
    num_layers = reader.integer("num_hidden_layers")
    window = reader.optional_integer("sliding_window", default=4096)
    if not reader.flag("use_sliding_window", default=False):
        window = None
    kinds = reader.words("layer_types")
    if kinds is None:
        first = reader.optional_integer("max_window_layers", default=28, low=0) or 0
        return tuple(window if i >= first else None for i in range(num_layers))
    if len(kinds) != num_layers:
        raise CheckpointError(
            f"layer_types must name num_hidden_layers ({num_layers}) layers, got {len(kinds)}"
        )
    windows: list[int | None] = []
    for kind in kinds:
        if kind == "full_attention":
            windows.append(None)
        elif kind == "sliding_attention" and window is not None:
            windows.append(window)
        else:
            raise CheckpointError(
                f"layer_types has {kind!r} with sliding_window = {window}; jaxserve supports"
                " full_attention, and sliding_attention where use_sliding_window is true"
            )
    return tuple(windows)
