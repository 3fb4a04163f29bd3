"""Checkpoints of NVIDIA's Model Optimizer.

`quant_algo` names the format of all modules, or of each in `quantized_layers`. Weights have the
numbers that the format means; activations are not quantized. A module may have a `pre_quant_scale`,
by which its input is multiplied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import jax.numpy as jnp
import msgspec
from jaxtyping import Array

from jaxserve.errors import CheckpointError
from jaxserve.quantization.formats import Stored, read_settings, scale_kind
from jaxserve.quantization.grouped import E8M0, Groups
from jaxserve.quantization.layout import Component
from jaxserve.quantization.stored_codes import (
    UNUSED,
    StoredCodes,
    StoredScales,
    eight_bits,
    rank_of,
)

VARIANTS = "FP8 per tensor or channel, NVFP4, MXFP4, MXFP8, W4A16 AWQ, INT8 SmoothQuant, mixed"

_FACTORS = "pre_quant_scale"
# By algorithm: how the scales of 8-bit codes are stored, and the code.
_EIGHT_BITS = {
    "FP8": ("e4m3", "tensor"),
    "FP8_PER_CHANNEL_PER_TOKEN": ("e4m3", "channel"),
    "W8A8_SQ_PER_CHANNEL": ("int8", "channel"),
    "W8A16": ("int8", "channel"),
}
# By algorithm: code, scales, inputs of a group, and whether there is a factor of all scales.
_SMALL_GROUPS = {
    "NVFP4": ("fp4", "e4m3", 16, True),
    "NVFP4_AWQ": ("fp4", "e4m3", 16, True),
    "W4A16_NVFP4": ("fp4", "e4m3", 16, True),
    "MXFP4": ("fp4", E8M0, 32, False),
    "MXFP8": ("e4m3", E8M0, 32, False),
}
_AWQ = "W4A16_AWQ"
_MIXED = "MIXED_PRECISION"


class _Settings(msgspec.Struct):
    quant_algo: str | None = None
    kv_cache_quant_algo: str | None = None
    group_size: int | None = None
    has_zero_point: bool = False
    pre_quant_scale: bool | None = None
    exclude_modules: list[str] | None = None
    ignore: list[str] | None = None
    quantized_layers: dict[str, dict[str, Any]] | None = None
    quantization: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class AwqMethod(StoredCodes):
    """Signed integers of 4 bits, of two outputs a byte."""

    def _codes(self, name: str, outputs: int, inputs: int) -> Component:
        return Component(name, (outputs // 2, inputs), frozenset({"U8"}))

    def _unpacked(self, codes: Array) -> Array:
        # In two's complement; our codes are 8 higher.
        pair = jnp.stack([codes & 15, codes >> 4], axis=1) ^ 8
        return pair.reshape(-1, codes.shape[1])


@dataclass(frozen=True)
class _ModelOpt:
    algorithm: str
    group_size: int | None
    left_out: tuple[str, ...]
    layers: Mapping[str, str]

    def method(self, module: str, kind: str, stored: Stored) -> StoredCodes | None:
        algorithm = self.layers.get(module) if self.algorithm == _MIXED else self.algorithm
        if kind != "Linear" or algorithm is None or _is_listed(module, self.left_out):
            return None
        factors = _FACTORS if stored.get(f"{module}.{_FACTORS}") is not None else ""
        name = f"{module}.weight_scale"
        if algorithm in _EIGHT_BITS:
            code, per = _EIGHT_BITS[algorithm]
            rank = rank_of(stored, name, int(per == "channel"))
            scales = StoredScales(
                name="weight_scale", per="tensor" if per == "tensor" else "channel", rank=rank
            )
            return eight_bits(module, code, scales, stored, factors=factors)
        shared = (factors,) if factors else ()
        scales = StoredScales(name="weight_scale", per="group")
        if algorithm == _AWQ:
            scale = scale_kind(stored, name, default="float32")
            groups = Groups("int4", self._size(module, stored), scale, has_factors=bool(factors))
            return AwqMethod(
                groups=groups, unused=UNUSED, shared=shared, scales=scales, factors=factors
            )
        code, scale, size, has_outer = _SMALL_GROUPS[algorithm]
        return StoredCodes(
            groups=Groups(
                code,
                size,
                scale,
                outer="multiply" if has_outer else None,
                has_factors=bool(factors),
            ),
            unused=UNUSED,
            shared=shared,
            scales=scales,
            outer="weight_scale_2" if has_outer else "",
            outer_rank=rank_of(stored, f"{module}.weight_scale_2", 0),
            factors=factors,
        )

    def _size(self, module: str, stored: Stored) -> int:
        """Return the inputs of a group, which not all versions write."""
        weight, scale = stored.get(f"{module}.weight"), stored.get(f"{module}.weight_scale")
        if self.group_size is not None or weight is None or scale is None:
            return self.group_size or 128
        return weight.shape[-1] // scale.shape[-1]


def _is_listed(module: str, patterns: Sequence[str]) -> bool:
    """Return whether a module or one that contains it is listed. Patterns may have wildcards."""
    return any(
        fnmatchcase(module, pattern) or module.startswith(f"{pattern}.") for pattern in patterns
    )


def read_format(values: Mapping[str, object]) -> _ModelOpt:
    """Read the settings of a Model Optimizer checkpoint. Raises CheckpointError."""
    notes = ("producer", "config_groups", "kv_cache_scheme", "exclude_modules_pattern")
    settings = read_settings(_Settings, values, notes=notes)
    if settings.quantization is not None:
        settings = read_settings(_Settings, settings.quantization, notes=notes)
    known = (*_EIGHT_BITS, *_SMALL_GROUPS, _AWQ)
    layers = {
        name: _algorithm(each.get("quant_algo"), known)
        for name, each in (settings.quantized_layers or {}).items()
    }
    return _ModelOpt(
        _algorithm(settings.quant_algo, (*known, _MIXED)),
        settings.group_size,
        (*(settings.exclude_modules or ()), *(settings.ignore or ())),
        layers,
    )


def _algorithm(name: object, known: Sequence[str]) -> str:
    found = str(name).upper()
    if found not in known:
        raise CheckpointError(
            f"quantization_config has quant_algo = {name!r}; jaxserve supports {', '.join(known)}"
        )
    return found
