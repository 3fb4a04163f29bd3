"""Experts in MXFP4, as OpenAI publishes gpt-oss (OCP Microscaling Formats 1.0, 2023).

A stack of matrices [experts, inputs, outputs] is stored as `_blocks` uint8 [experts, outputs,
groups, 16], two inputs a byte with the low bits first, and `_scales` uint8 [experts, outputs,
groups], powers of two with bias 127.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import msgspec
from jaxtyping import Array

from jaxserve.quantization import unpacking
from jaxserve.quantization.formats import Stored, read_settings, regex_match
from jaxserve.quantization.grouped import E8M0, Groups
from jaxserve.quantization.grouped_method import GroupedMethod
from jaxserve.quantization.layout import Component, WeightLayout

VARIANTS = "stacks of experts of gpt-oss"

_SIZE = 32
_GROUPS = Groups("fp4", _SIZE, E8M0)
_STACKS = (".experts.gate_up_proj", ".experts.down_proj")


class _Settings(msgspec.Struct):
    modules_to_not_convert: list[str] | None = None
    dequantize: bool = False


@dataclass(frozen=True, kw_only=True)
class Mxfp4Method(GroupedMethod):
    """Method of one stack of matrices."""

    groups: Groups = _GROUPS

    def components(self, name: str, shape: Sequence[int]) -> Mapping[str, Component]:
        """See Method."""
        experts, inputs, outputs = shape
        num_groups, stored = inputs // _SIZE, frozenset({"U8"})
        blocks = (experts, outputs, num_groups, _SIZE // 2)
        return {
            "codes": Component(f"{name}_blocks", blocks, stored),
            "scales": Component(f"{name}_scales", blocks[:-1], stored),
        }

    def unpack(self, stored: Mapping[str, Array], layout: WeightLayout) -> Mapping[str, Array]:
        """See Method."""
        del layout
        blocks = stored["codes"]
        codes = unpacking.nibbles(blocks.reshape(*blocks.shape[:2], -1))
        return {"codes": jnp.swapaxes(codes, 1, 2), "scales": jnp.swapaxes(stored["scales"], 1, 2)}


@dataclass(frozen=True)
class _Mxfp4:
    left_out: tuple[str, ...]

    def method(self, module: str, kind: str, stored: Stored) -> Mxfp4Method | None:
        del kind, stored
        is_left_out = any(regex_match(each, module) for each in self.left_out)
        return None if is_left_out or not module.endswith(_STACKS) else Mxfp4Method()


def read_format(values: Mapping[str, object]) -> _Mxfp4:
    """Read the settings of an MXFP4 checkpoint. Raises CheckpointError."""
    settings = read_settings(_Settings, values)
    return _Mxfp4(tuple(settings.modules_to_not_convert or ()))
