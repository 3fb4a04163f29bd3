"""AWQ checkpoints (Lin et al., 2023, arXiv:2306.00978), in the layout "gemm" of AutoAWQ.

Of a module with N outputs and K inputs they store `qweight` int32 [K, N / 8] and `qzeros` int32
[groups, N / 8], packed along the outputs in an order of their own, and `scales` [groups, N].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import msgspec
from jaxtyping import Array

from jaxserve.quantization import unpacking
from jaxserve.quantization.formats import Stored, only, read_settings, scale_kind
from jaxserve.quantization.grouped import Groups
from jaxserve.quantization.grouped_method import GroupedMethod
from jaxserve.quantization.layout import Component, WeightLayout

VARIANTS = "4 bits in the layout `gemm`"

# Keys that record how the weights were made, or how others compute.
_NOTES = (
    "autoround_version",
    "data_type",
    "desc_act",
    "do_fuse",
    "exllama_config",
    "fuse_max_seq_len",
    "iters",
    "meta",
    "method",
    "modules_to_fuse",
    "nsamples",
    "pack_dtype",
    "provider",
    "seqlen",
    "sym",
    "to_quant_block_names",
)


class _Settings(msgspec.Struct):
    bits: Literal[4] | None = None
    w_bit: Literal[4] | None = None
    group_size: int | None = None
    q_group_size: int | None = None
    zero_point: bool = True
    version: str = "gemm"
    format: Literal["gemm"] | None = None
    checkpoint_format: Literal["gemm"] | None = None
    backend: str | None = None
    lm_head: bool = False
    modules_to_not_convert: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class AwqMethod(GroupedMethod):
    """Method of one matrix."""

    def components(self, name: str, shape: Sequence[int]) -> Mapping[str, Component]:
        """See Method."""
        module, (outputs, inputs) = name.removesuffix(".weight"), shape
        num_groups = inputs // (self.groups.size or inputs)
        integers = frozenset({"I32"})
        return {
            "codes": Component(f"{module}.qweight", (inputs, outputs // 8), integers),
            "zeros": Component(f"{module}.qzeros", (num_groups, outputs // 8), integers),
            "scales": Component(f"{module}.scales", (num_groups, outputs)),
        }

    def unpack(self, stored: Mapping[str, Array], layout: WeightLayout) -> Mapping[str, Array]:
        """See Method."""
        del layout
        return {
            "codes": _unpacked(stored["codes"]).T,
            "zeros": _unpacked(stored["zeros"]).T,
            "scales": stored["scales"].T.astype(self.groups.scale),
        }


def _unpacked(packed: Array) -> Array:
    # From the lowest bits, a word has its even outputs and then its odd ones.
    eights = unpacking.words(packed, 4).reshape(*packed.shape, 2, 4)
    return jnp.swapaxes(eights, -1, -2).reshape(packed.shape[0], -1)


@dataclass(frozen=True)
class _Awq:
    size: int | None
    lm_head: bool
    left_out: tuple[str, ...]

    def method(self, module: str, kind: str, stored: Stored) -> AwqMethod | None:
        is_left_out = any(part in module for part in self.left_out)
        is_head = module.endswith("lm_head")
        if kind != "Linear" or is_left_out or (is_head and not self.lm_head):
            return None
        scale = scale_kind(stored, f"{module}.scales", default="float16")
        return AwqMethod(groups=Groups("uint4", self.size, scale, has_zeros=True))


def read_format(values: Mapping[str, object]) -> _Awq:
    """Read the settings of an AWQ checkpoint. Raises CheckpointError."""
    settings = read_settings(_Settings, values, notes=_NOTES)
    version = settings.version.lower()
    only(version == "gemm", f"version must be gemm, got {settings.version!r}")
    only(settings.zero_point, "zero_point must be true, got false")
    only(bool(settings.bits or settings.w_bit), "bits is missing")
    size = settings.group_size or settings.q_group_size or 128
    only(size == -1 or size > 0, f"group_size must be -1 or positive, got {size}")
    left_out = tuple(settings.modules_to_not_convert or ())
    return _Awq(None if size < 1 else size, settings.lm_head, left_out)
