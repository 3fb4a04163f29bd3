"""Methods of matrices stored as [outputs, inputs], which several formats share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxserve.quantization import unpacking
from jaxserve.quantization.formats import Stored, scale_kind
from jaxserve.quantization.grouped import E8M0, SCALES, Groups
from jaxserve.quantization.grouped_method import GroupedMethod
from jaxserve.quantization.layout import FLOAT_DTYPES, Component, WeightLayout

# Scales of activations and of the KV cache, which are not used: products take activations as they
# are, and the cache has its own options.
UNUSED = (
    "activation_scale",
    "input_global_scale",
    "input_scale",
    "input_zero_point",
    "k_scale",
    "output_scale",
    "q_scale",
    "v_scale",
)
_STORED = {"e4m3": frozenset({"F8_E4M3"}), E8M0: frozenset({"U8", "F8_E8M0"})}
_CODES = {"int8": frozenset({"I8"}), "e4m3": frozenset({"F8_E4M3"})}


@dataclass(frozen=True, kw_only=True)
class StoredScales:
    """How the scales of a module are stored.

    name: end of the tensor's name. per: what a scale belongs to: the whole matrix, an output, a
    group of inputs of an output, or a block. rank: number of dimensions, of which scales of a
    matrix or an output have one or none too many. block: outputs and inputs of a block.
    """

    name: str
    per: Literal["tensor", "channel", "group", "block"]
    rank: int = 2
    block: tuple[int, int] = (1, 1)

    def shape(self, outputs: int, num_groups: int) -> tuple[int, ...]:
        """Return the shape of the stored tensor."""
        match self.per:
            case "tensor":
                return (1,) * self.rank
            case "channel":
                return (outputs, *(1,) * (self.rank - 1))
            case "group":
                return (outputs, num_groups)
            case "block":
                return (-(-outputs // self.block[0]), num_groups)

    def unpack(self, scales: Array, kind: str, outputs: int) -> Array:
        """Return the scales as [outputs, groups]. kind: one of SCALES."""
        if scales.dtype == jnp.float8_e8m0fnu:
            scales = lax.bitcast_convert_type(scales, jnp.uint8)
        scales = scales.astype(SCALES[kind])
        match self.per:
            case "tensor":
                return jnp.broadcast_to(scales.reshape(1, 1), (outputs, 1))
            case "channel":
                return scales.reshape(outputs, 1)
            case "group":
                return scales
            case "block":
                return jnp.repeat(scales, self.block[0], axis=0)[:outputs]


@dataclass(frozen=True, kw_only=True)
class StoredCodes(GroupedMethod):
    """Codes of 8 bits as they are, or of 4 bits, two inputs a byte.

    name: end of the name of the codes. outer: that of a factor of all scales. zeros: that of zero
    points, which are stored as the scales are. factors: that of the factors of inputs.
    """

    scales: StoredScales
    name: str = "weight"
    outer: str = ""
    zeros: str = ""
    factors: str = ""
    outer_rank: int = 1

    def components(self, name: str, shape: Sequence[int]) -> Mapping[str, Component]:
        """See Method."""
        module, (outputs, inputs) = name.removesuffix(".weight"), shape
        groups = self.groups
        num_groups = 1 if groups.size is None else inputs // groups.size
        found = {
            "codes": self._codes(f"{module}.{self.name}", outputs, inputs),
            "scales": Component(
                f"{module}.{self.scales.name}",
                self.scales.shape(outputs, num_groups),
                _STORED.get(groups.scale, FLOAT_DTYPES),
            ),
        }
        if self.outer:
            found["outer"] = Component(f"{module}.{self.outer}", (1,) * self.outer_rank)
        if self.zeros:
            zeros, integers = self.scales.shape(outputs, num_groups), frozenset({"I8", "I32"})
            found["zeros"] = Component(f"{module}.{self.zeros}", zeros, integers)
        if self.factors:
            found["factors"] = Component(f"{module}.{self.factors}", (inputs,))
        return found

    def _codes(self, name: str, outputs: int, inputs: int) -> Component:
        if self.groups.of_code.table:
            return Component(name, (outputs, inputs // 2), frozenset({"U8"}))
        return Component(name, (outputs, inputs), _CODES[self.groups.code])

    def _unpacked(self, codes: Array) -> Array:
        return unpacking.nibbles(codes) if self.groups.of_code.table else codes

    def unpack(self, stored: Mapping[str, Array], layout: WeightLayout) -> Mapping[str, Array]:
        """See Method."""
        del layout
        codes = self._unpacked(stored["codes"])
        outputs = codes.shape[0]
        found = {
            "codes": codes,
            "scales": self.scales.unpack(stored["scales"], self.groups.scale, outputs),
        }
        if self.outer:
            outer = stored["outer"].astype(jnp.float32).reshape(1, 1)
            found["outer"] = jnp.broadcast_to(outer, (outputs, 1))
        if self.zeros:
            zeros = stored["zeros"].astype(jnp.int16)
            found["zeros"] = jnp.broadcast_to(
                zeros.reshape(zeros.shape[0], -1), found["scales"].shape
            )
        if self.factors:
            found["factors"] = stored["factors"].astype(jnp.float32)[None]
        return found


def eight_bits(
    module: str,
    code: str,
    scales: StoredScales,
    stored: Stored,
    *,
    zeros: str = "",
    factors: str = "",
) -> StoredCodes:
    """Return the method of a module of int8 or FP8 codes with floating-point or E8M0 scales."""
    size = None if scales.per in {"tensor", "channel"} else scales.block[1]
    groups = Groups(
        code,
        size,
        scale_kind(stored, f"{module}.{scales.name}", default="float32"),
        has_zeros=bool(zeros),
        has_factors=bool(factors),
    )
    return StoredCodes(
        groups=groups,
        unused=UNUSED,
        shared=(factors,) if factors else (),
        scales=scales,
        zeros=zeros,
        factors=factors,
    )


def rank_of(stored: Stored, name: str, default: int) -> int:
    """Return the number of dimensions of a stored tensor."""
    info = stored.get(name)
    return default if info is None else len(info.shape)
