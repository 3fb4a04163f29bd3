"""GPTQ checkpoints (Frantar et al., 2022, arXiv:2210.17323), as GPTQModel and AutoGPTQ write them.

Of a module with N outputs and K inputs they store `qweight` int32 [K * bits / 32, N], packed along
the inputs, `qzeros` int32 [groups, N * bits / 32], packed along the outputs, `scales` [groups, N],
and `g_idx` int32 [K], the group of each input. The first version of the format stores zero points
less one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from jaxtyping import Array

from jaxserve.errors import CheckpointError
from jaxserve.quantization import unpacking
from jaxserve.quantization.formats import Stored, only, read_settings, regex_match, scale_kind
from jaxserve.quantization.grouped import Groups
from jaxserve.quantization.grouped_method import GroupedMethod
from jaxserve.quantization.layout import Component, WeightLayout

VARIANTS = (
    "4 and 8 bits, symmetric or not, act-order, versions 1 and 2, `dynamic` settings of modules"
)

_NOTES = (
    "act_group_aware",
    "autoround_version",
    "batch_size",
    "block_name_to_quantize",
    "cache_block_outputs",
    "damp_auto_increment",
    "damp_percent",
    "data_type",
    "dataset",
    "disable_exllama",
    "enable_quanted_input",
    "exllama_config",
    "iters",
    "lr",
    "max_input_length",
    "meta",
    "method",
    "minmax_lr",
    "model_file_base_name",
    "model_name_or_path",
    "module_name_preceding_first_block",
    "mse",
    "nsamples",
    "pad_token_id",
    "provider",
    "seqlen",
    "static_groups",
    "to_quant_block_names",
    "tokenizer",
    "true_sequential",
    "use_cuda_fp16",
    "use_exllama",
    "version",
)


class _Override(msgspec.Struct):
    """Values for some modules, in place of the general ones."""

    bits: Literal[4, 8] | None = None
    group_size: int | None = None
    desc_act: bool | None = None
    sym: bool | None = None


class _Settings(msgspec.Struct):
    bits: Literal[4, 8]
    group_size: int = 128
    desc_act: bool | None = False
    sym: bool = True
    lm_head: bool = False
    checkpoint_format: Literal["gptq", "gptq_v2"] | None = None
    format: Literal["gptq", "gptq_v2"] | None = None
    pack_dtype: Literal["int32"] = "int32"
    dynamic: dict[str, dict[str, Any]] | None = None
    modules_in_block_to_quantize: list[list[str] | str] | None = None
    is_marlin_format: Literal[False] | None = None


@dataclass(frozen=True, kw_only=True)
class GptqMethod(GroupedMethod):
    """Method of one matrix. zero_offset: what is added to stored zero points."""

    zero_offset: int

    def components(self, name: str, shape: Sequence[int]) -> Mapping[str, Component]:
        """See Method."""
        module, (outputs, inputs) = name.removesuffix(".weight"), shape
        per_word = 32 // self.groups.of_code.bits
        num_groups = inputs // (self.groups.size or inputs)
        integers = frozenset({"I32"})
        found = {
            "codes": Component(f"{module}.qweight", (inputs // per_word, outputs), integers),
            "zeros": Component(f"{module}.qzeros", (num_groups, outputs // per_word), integers),
            "scales": Component(f"{module}.scales", (num_groups, outputs)),
        }
        if self.groups.has_order:
            found["g_idx"] = Component(f"{module}.g_idx", (inputs,), integers)
        return found

    def unpack(self, stored: Mapping[str, Array], layout: WeightLayout) -> Mapping[str, Array]:
        """See Method."""
        del layout
        bits = self.groups.of_code.bits
        codes = unpacking.words(stored["codes"].T, bits)
        zeros = unpacking.words(stored["zeros"], bits).astype(self.groups.zero_dtype)
        found = {
            "codes": codes,
            "zeros": (zeros + self.zero_offset).T,
            "scales": stored["scales"].T.astype(self.groups.scale),
        }
        if self.groups.has_order:
            order = unpacking.group_order(stored["g_idx"])
            found |= {"codes": codes[:, order], "order": order[None]}
        return found


@dataclass(frozen=True)
class _Gptq:
    settings: _Settings
    dynamic: Mapping[str, _Override | None]

    def method(self, module: str, kind: str, stored: Stored) -> GptqMethod | None:
        settings = self.settings
        if kind != "Linear" or not self._is_quantized(module):
            return None
        own = self._override(module)
        if own is None:
            return None
        bits = own.bits or settings.bits
        size = own.group_size or settings.group_size
        scale = scale_kind(stored, f"{module}.scales", default="float16")
        version = settings.checkpoint_format or settings.format or "gptq"
        has_order = _has_order(stored, f"{module}.g_idx", size)
        groups = Groups(
            f"uint{bits}", None if size < 1 else size, scale, has_zeros=True, has_order=has_order
        )
        return GptqMethod(
            groups=groups,
            unused=_unused(stored, module, has_order=has_order),
            shared=("g_idx",) if has_order else (),
            zero_offset=int(version == "gptq"),
        )

    def _is_quantized(self, module: str) -> bool:
        if module.endswith("lm_head"):
            return self.settings.lm_head
        blocks = self.settings.modules_in_block_to_quantize
        if blocks is None:
            return True
        names = [name for each in blocks for name in ([each] if isinstance(each, str) else each)]
        return any(module.endswith(name) for name in names)

    def _override(self, module: str) -> _Override | None:
        """Return a module's own values, as the first pattern that matches says."""
        for pattern, own in self.dynamic.items():
            if regex_match(pattern.removeprefix("+:").removeprefix("-:"), module):
                return own
        return _Override()


def read_format(values: Mapping[str, object]) -> _Gptq:
    """Read the settings of a GPTQ checkpoint. Raises CheckpointError."""
    settings = read_settings(_Settings, values, notes=_NOTES)
    size = settings.group_size
    only(size == -1 or size > 0, f"group_size must be -1 or positive, got {size}")
    dynamic: dict[str, _Override | None] = {}
    for pattern, own in (settings.dynamic or {}).items():
        where = f"quantization_config.dynamic[{pattern!r}]"
        override = read_settings(_Override, own, notes=_NOTES, where=where)
        dynamic[pattern] = None if pattern.startswith("-:") else override
    return _Gptq(settings, dynamic)


def _unused(stored: Stored, module: str, *, has_order: bool) -> tuple[str, ...]:
    """Return the ends of the names of stored tensors that change nothing.

    AutoGPTQ stored a bias of zeros for every module, whether the model has one or not.
    """
    has_bias = stored.get(f"{module}.bias") is not None and stored.read(f"{module}.bias").any()
    return (*(() if has_order else ("g_idx",)), *(() if has_bias else ("bias",)))


def _has_order(stored: Stored, name: str, size: int) -> bool:
    """Return whether a module's inputs are not in the order of their groups.

    Raises CheckpointError if the groups differ in size.
    """
    if stored.get(name) is None:
        return False
    group_of = stored.read(name)
    usual = np.zeros_like(group_of) if size < 1 else np.arange(len(group_of)) // size
    if np.array_equal(group_of, usual):
        return False
    if not np.array_equal(np.sort(group_of), usual):
        raise CheckpointError(f"{name} must have {size} inputs of each group")
    return True
