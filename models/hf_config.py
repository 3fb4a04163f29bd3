"""Reading a Hugging Face `config.json`, strictly: what we would compute wrongly is refused by name.

Keys and defaults are those of transformers 5.23; both its spellings of RoPE are read
(`rope_parameters`, and the older `rope_theta` beside `rope_scaling`).
"""

import math
from collections.abc import Mapping

from jaxserve.errors import CheckpointError
from jaxserve.layers.rope import DynamicRope, LinearRope, Llama3Rope, Rope, YarnRope
from jaxserve.models.config import DecoderConfig, EncoderConfig


class HfConfig:
    """Typed reads of a JSON object; every mistake raises CheckpointError naming key and value."""

    def __init__(self, values: Mapping[str, object], *, where: str = "config.json") -> None:
        """Wrap `values`; `where` is what messages call them."""
        self._values = values
        self._where = where

    def integer(self, key: str, *, default: int | None = None) -> int:
        """Return a positive integer. Without a default it is required."""
        value = self.optional_integer(key, default=default)
        if value is None:
            raise CheckpointError(f"{self._where} lacks {key}")
        return value

    def optional_integer(self, key: str, *, default: int | None = None, low: int = 1) -> int | None:
        """Return an integer from `low` up, or None; `default` stands in for an absent key only."""
        value = self._values.get(key, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise self._refusal(key, f"integers from {low} up")
        return value

    def number(self, key: str, *, default: float | None = None) -> float:
        """Return a positive number as a float. Without a default it is required."""
        value = self.optional_number(key)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self._where} lacks {key}")
        return value

    def optional_number(self, key: str) -> float | None:
        """Return a positive number as a float, or None where it is absent or null."""
        value = self._values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._refusal(key, "positive numbers")
        if not 0 < value < math.inf:
            raise self._refusal(key, "positive numbers")
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """Return a boolean; null counts as absent."""
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._refusal(key, "true or false")
        return value

    def only(self, key: str, *allowed: object) -> None:
        """Refuse a key that is present with any value but those allowed."""
        if key in self._values and self._values[key] not in allowed:
            raise self._refusal(key, " or ".join(_json_word(value) for value in allowed))

    def words(self, key: str) -> tuple[str, ...] | None:
        """Return a list of strings, or None where it is absent or null."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise self._refusal(key, "lists of strings")
        return tuple(value)

    def word(self, key: str) -> str | None:
        """Return a string, or None where it is absent or null."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self._refusal(key, "strings")
        return value

    def section(self, key: str) -> "HfConfig | None":
        """Return a nested object, or None where it is absent, null or empty."""
        value = self._values.get(key)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self._refusal(key, "objects")
        return HfConfig(value, where=f"{key} in {self._where}")

    def labels(self) -> tuple[str, ...]:
        """Return the names of the labels that a classifier scores; two where none are named."""
        labels = self._values.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        if not isinstance(labels, dict) or set(labels) != {str(i) for i in range(len(labels))}:
            raise self._refusal("id2label", "objects of names by number, from 0 up")
        return tuple(str(labels[str(i)]) for i in range(len(labels)))

    def refuse_nested(self) -> None:
        """Refuse objects among the values: settings by kind of layer, which are not supported."""
        for key, value in self._values.items():
            if isinstance(value, dict):
                raise self._refusal(key, "one setting for all layers")

    def _refusal(self, key: str, limit: str) -> CheckpointError:
        return CheckpointError(
            f"{self._where} has {key} = {self._values[key]!r}; jaxserve supports {limit}"
        )


def decoder_config(
    reader: HfConfig,
    *,
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    head_dim: int | None = None,
    kv_heads: int | None = None,
    sliding_windows: tuple[int | None, ...] | None = None,
    hidden_act: str = "silu",
) -> DecoderConfig:
    """Read what all families share. Keywords are what a family fixes or defaults to.

    head_dim and kv_heads stand in for absent keys (default: embed / heads, and heads).
    """
    reader.only("hidden_act", hidden_act)
    reader.only("quantization_config", None, {})
    reader.only("partial_rotary_factor", 1.0, None)
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
    if heads % kv_heads:
        raise CheckpointError(
            f"num_attention_heads must be a multiple of num_key_value_heads, got {heads} and"
            f" {kv_heads}"
        )
    if head_dim % 2:
        raise CheckpointError(f"head_dim must be even for rotary positions, got {head_dim}")
    return DecoderConfig(
        model_type=reader.word("model_type") or "",
        vocab_size=reader.integer("vocab_size"),
        embed=embed,
        ffw=reader.integer("intermediate_size"),
        num_layers=num_layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=reader.number("rms_norm_eps", default=1e-6),
        rope=read_rope(reader, max_position=max_position),
        max_position=max_position,
        tied_embeddings=reader.flag("tie_word_embeddings", default=False),
        sliding_windows=(None,) * num_layers if sliding_windows is None else sliding_windows,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        num_labels=read_num_labels(reader, default="ForCausalLM"),
    )


def encoder_config(reader: HfConfig, *, first_position: int) -> EncoderConfig:
    """Read what the BERT families share; first_position: where a text begins."""
    reader.only("hidden_act", "gelu")
    reader.only("position_embedding_type", "absolute", None)
    reader.only("quantization_config", None, {})
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
    return EncoderConfig(
        model_type=reader.word("model_type") or "",
        vocab_size=reader.integer("vocab_size"),
        embed=embed,
        ffw=reader.integer("intermediate_size"),
        num_layers=reader.integer("num_hidden_layers"),
        heads=heads,
        norm_eps=reader.number("layer_norm_eps", default=1e-12),
        num_positions=reader.integer("max_position_embeddings"),
        first_position=first_position,
        num_segments=reader.integer("type_vocab_size", default=2),
        num_labels=num_labels,
    )


def read_num_labels(reader: HfConfig, *, default: str) -> int | None:
    """Return what the head scores: labels, none (0) of a bare model, None for the vocabulary.

    default: the architecture of a config.json that names none.
    """
    for name in reader.words("architectures") or (default,):
        if name.endswith("ForSequenceClassification"):
            return len(reader.labels())
        if name.endswith(("Model", "ForMaskedLM")):
            return 0
        if not name.endswith("ForCausalLM"):
            raise CheckpointError(
                f"config.json has architectures = [{name!r}]; jaxserve supports ...ForCausalLM,"
                " ...ForSequenceClassification and ...Model"
            )
    return None


def qwen_windows(reader: HfConfig) -> tuple[int | None, ...]:
    """Return each layer's window as Qwen2 and Qwen3 say it.

    `layer_types` lists the layers; where it is absent those from `max_window_layers` on slide.
    Nothing slides unless `use_sliding_window` is true.
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


def read_rope(reader: HfConfig, *, max_position: int) -> Rope:
    """Return the rotation from `rope_parameters`, or from `rope_theta` and `rope_scaling`."""
    rope = reader.section("rope_scaling") or reader.section("rope_parameters")
    outer_theta = reader.number("rope_theta", default=10000.0)
    if rope is None:
        return Rope(theta=outer_theta)
    rope.refuse_nested()
    theta = rope.number("rope_theta", default=outer_theta)
    rope.only("partial_rotary_factor", 1.0, None)
    kind = rope.word("rope_type") or rope.word("type") or "default"
    original = rope.integer("original_max_position_embeddings", default=max_position)
    match kind:
        case "default":
            return Rope(theta=theta)
        case "linear":
            return LinearRope(theta=theta, factor=rope.number("factor"))
        case "dynamic":
            return DynamicRope(theta=theta, factor=rope.number("factor"), max_position=max_position)
        case "llama3":
            return Llama3Rope(
                theta=theta,
                factor=rope.number("factor"),
                low_freq_factor=rope.number("low_freq_factor"),
                high_freq_factor=rope.number("high_freq_factor"),
                original_max_position=original,
            )
        case "yarn":
            return YarnRope(
                theta=theta,
                factor=rope.number("factor", default=max_position / original),
                original_max_position=original,
                beta_fast=rope.number("beta_fast", default=32.0),
                beta_slow=rope.number("beta_slow", default=1.0),
                attention_factor=rope.optional_number("attention_factor"),
                mscale=rope.optional_number("mscale"),
                mscale_all_dim=rope.optional_number("mscale_all_dim"),
                truncate=rope.flag("truncate", default=True),
            )
        case _:
            raise CheckpointError(
                f"config.json has rope_type = {kind!r}; jaxserve supports default, linear,"
                " dynamic, llama3, yarn"
            )


def _json_word(value: object) -> str:
    return "null" if value is None else repr(value)
