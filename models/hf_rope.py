"""Rotary embedding settings of a Hugging Face `config.json`, and config overrides.

Reads both of transformers' formats: `rope_parameters`, and the older `rope_scaling` next to
`rope_theta`, whose `rope_type` may be called `type`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxserve.errors import CheckpointError
from jaxserve.layers.rope import (
    DynamicRope,
    LinearRope,
    Llama3Rope,
    LongRope,
    ProportionalRope,
    Rope,
    YarnRope,
)
from jaxserve.models.config import ModelConfig
from jaxserve.models.hf_reader import HfConfig

# Values of `layer_types`.
SLIDING = "sliding_attention"
FULL = "full_attention"

# The newer key comes first. If a file has both, the older one wins, as in transformers.
_SPELLINGS = ("rope_parameters", "rope_scaling")


def with_overrides(hf: Mapping[str, object], overrides: Mapping[str, object]) -> dict[str, object]:
    """Return a config with some values replaced; objects are merged key by key.

    An override of the rotary embedding may use either format. null removes the scaling and keeps
    `rope_theta`.
    """
    if any(key in overrides for key in _SPELLINGS):
        hf, overrides = _one_spelling(hf), _one_spelling(overrides)
        if overrides["rope_parameters"] is None:
            found = hf.get("rope_parameters")
            theta = found.get("rope_theta") if isinstance(found, dict) else None
            kept = {} if theta is None else {"rope_theta": theta}
            return _merged({**hf, "rope_parameters": kept}, {**overrides, "rope_parameters": {}})
    return _merged(hf, overrides)


def stretched_rope(model: ModelConfig, num_tokens: int) -> dict[str, object] | None:
    """Return the overrides that extend a model's context to `num_tokens` tokens.

    None if the model has a table of positions, which ends where it ends.
    """
    if model.num_positions:
        return None

    def by(num_positions: int, **settings: object) -> dict[str, object]:
        return {"rope_parameters": {**settings, "factor": math.ceil(num_tokens / num_positions)}}

    match model.rope:
        case None:
            return {"max_position_embeddings": num_tokens}
        case Llama3Rope() | LinearRope(is_included=True):  # their factor does not extend it
            return {"max_position_embeddings": num_tokens}
        case YarnRope(original_max_position=original):
            return by(original)
        case LinearRope() | DynamicRope():
            return by(model.max_position)
        case _:
            original = model.max_position
            return by(original, rope_type="yarn", original_max_position_embeddings=original)


def read_rope(
    reader: HfConfig,
    *,
    max_position: int,
    layer_type: str | None = None,
    partial_rotary_factor: float | None = None,
) -> Rope:
    """Return the rotary embedding of a decoder; raises CheckpointError.

    layer_type: layers to read settings for, None if all layers must have the same.
    partial_rotary_factor: default of this key; None for families that rotate whole heads.
    """
    settings = _settings(reader, layer_type)
    rope = Rope() if settings is None else _variant(reader, settings, max_position)
    theta = reader.number("rope_theta", default=10000.0)
    readers = [reader] if settings is None else [settings, reader]
    if partial_rotary_factor is None:
        for each in readers:
            each.only("partial_rotary_factor", 1.0, None)
    factors = [each.optional_number("partial_rotary_factor") for each in readers]
    return replace(
        rope,
        theta=theta if settings is None else settings.number("rope_theta", default=theta),
        partial_rotary_factor=next(filter(None, factors), partial_rotary_factor or 1.0),
    )


def read_ropes(
    reader: HfConfig,
    layer_types: Sequence[str],
    *,
    max_position: int,
    sliding_theta: float,
    partial_rotary_factor: float | None = None,
) -> tuple[Rope, ...]:
    """Return the rotary embedding of each layer, for families in which it depends on the type.

    Settings that are not divided by type apply to layers with full attention. Without settings of
    their own, sliding layers have the default rotation with `sliding_theta`.
    """
    full = read_rope(
        reader,
        max_position=max_position,
        layer_type=FULL,
        partial_rotary_factor=partial_rotary_factor,
    )
    settings = reader.section("rope_parameters") or HfConfig({})
    own = settings.section(SLIDING) or HfConfig({})
    theta = own.number("rope_theta", default=sliding_theta)
    sliding = replace(_variant(reader, own, max_position), theta=theta)
    return tuple(sliding if kind == SLIDING else full for kind in layer_types)


def _variant(reader: HfConfig, rope: HfConfig, max_position: int) -> Rope:
    """Return the variant that the settings describe, with the default frequencies."""
    kind = rope.word("rope_type") or "default"
    # As in transformers, the top-level key takes precedence.
    original = reader.optional_integer("original_max_position_embeddings") or rope.integer(
        "original_max_position_embeddings", default=max_position
    )
    match kind:
        case "default":
            return Rope()
        case "linear":
            return LinearRope(factor=rope.number("factor"))
        case "dynamic":
            return DynamicRope(factor=rope.number("factor"), max_position=max_position)
        case "proportional":
            return ProportionalRope(factor=rope.number("factor", default=1.0))
        case "longrope":
            return LongRope(
                long_factors=_factors(rope, "long_factor"),
                short_factors=_factors(rope, "short_factor"),
                factor=rope.number("factor", default=max_position / original),
                original_max_position=original,
                attention_factor=rope.optional_number("attention_factor"),
            )
        case "llama3":
            return Llama3Rope(
                factor=rope.number("factor"),
                low_freq_factor=rope.number("low_freq_factor"),
                high_freq_factor=rope.number("high_freq_factor"),
                original_max_position=original,
            )
        case "yarn":
            return YarnRope(
                factor=rope.number("factor", default=max_position / original),
                original_max_position=original,
                beta_fast=rope.number("beta_fast", default=32.0),
                beta_slow=rope.number("beta_slow", default=1.0),
                attention_factor=rope.optional_number("attention_factor"),
                mscale=rope.optional_number("mscale", or_zero=True),
                mscale_all_dim=rope.optional_number("mscale_all_dim", or_zero=True),
                truncate=rope.flag("truncate", default=True),
            )
        case _:
            raise CheckpointError(
                f"config.json has rope_type = {kind!r}; jaxserve supports default, linear,"
                " dynamic, llama3, longrope, proportional, yarn"
            )


def _factors(rope: HfConfig, key: str) -> tuple[float, ...]:
    factors = rope.numbers(key)
    if factors is None:
        raise CheckpointError(f"rope_parameters in config.json lack {key}")
    return factors


def _settings(reader: HfConfig, layer_type: str | None) -> HfConfig | None:
    """Return the rotary embedding settings in either format, None without any."""
    sections = {key: reader.section(key) for key in _SPELLINGS}
    named = [key for key, section in sections.items() if section is not None]
    if not named:
        return None
    values: dict[str, Any] = {}
    for key in named:
        section = sections[key]
        assert section is not None
        found = section.uniform() if layer_type is None else section.for_layers(layer_type)
        values |= _with_rope_type(found)
    return HfConfig(values, where=f"{' and '.join(named)} in config.json")


def _one_spelling(values: Mapping[str, object]) -> dict[str, object]:
    """Return a config with the settings under `rope_parameters` only; None for null."""
    found: dict[str, object] | None = None
    for key in _SPELLINGS:
        section = values.get(key)
        if isinstance(section, dict):
            found = {**(found or {}), **_with_rope_type(section)}
        elif section is not None:
            raise CheckpointError(f"{key} must be a JSON object, got {section!r}")
    rest = {key: value for key, value in values.items() if key not in _SPELLINGS}
    return {**rest, "rope_parameters": found}


def _with_rope_type(settings: Mapping[str, object]) -> dict[str, object]:
    """Return settings with `type` renamed to `rope_type`."""
    renamed = {key: value for key, value in settings.items() if key != "type"}
    if "type" in settings:
        renamed.setdefault("rope_type", settings["type"])
    return renamed


def _merged(base: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = _merged(below, value)
        result[key] = value
    return result
