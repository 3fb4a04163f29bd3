"""Checkpoints of AutoRound (Cheng et al., 2023, arXiv:2309.05516), packed as GPTQ or AWQ.

`extra_config` has settings of single modules; those of 16 bits or more are not quantized.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from jaxserve.quantization import awq, gptq
from jaxserve.quantization.formats import Format, only, read_settings

VARIANTS = "4 and 8 bits with packing `auto_round:auto_gptq`, 4 bits with `auto_round:auto_awq`"

_NOTES = (
    "amp",
    "autoround_version",
    "batch_size",
    "block_name_to_quantize",
    "dataset",
    "enable_minmax_tuning",
    "enable_norm_bias_tuning",
    "enable_quanted_input",
    "gradient_accumulate_steps",
    "iters",
    "low_gpu_mem_usage",
    "lr",
    "minmax_lr",
    "nsamples",
    "provider",
    "quant_block_list",
    "scale_dtype",
    "seqlen",
    "to_quant_block_names",
)


class _Settings(msgspec.Struct):
    bits: int
    group_size: int
    sym: bool = True
    data_type: Literal["int"] = "int"
    packing_format: str | None = None
    backend: str | None = None
    extra_config: dict[str, dict[str, Any]] | None = None
    act_bits: int | None = None
    act_data_type: str | None = None
    act_dynamic: bool | None = None
    act_group_size: int | None = None
    act_sym: bool | None = None


def read_format(values: Mapping[str, object]) -> Format:
    """Read the settings of an AutoRound checkpoint. Raises CheckpointError."""
    settings = read_settings(_Settings, values, notes=_NOTES)
    act_bits = settings.act_bits
    only(act_bits in {None, 16}, f"act_bits must be 16, got {act_bits}")
    packing = settings.packing_format or settings.backend
    own = settings.extra_config or {}
    common: dict[str, object] = {"bits": settings.bits, "group_size": settings.group_size}
    left_out = [module for module, each in own.items() if each.get("bits", settings.bits) >= 16]
    if packing == "auto_round:auto_awq":
        only(len(left_out) == len(own), "extra_config of AWQ can only leave out modules")
        return awq.read_format(common | {"modules_to_not_convert": left_out})
    only(packing == "auto_round:auto_gptq", f"packing_format {packing!r} is not supported")
    known = ("bits", "group_size", "sym")
    dynamic = {
        f"-:{re.escape(module)}$" if module in left_out else f"+:{re.escape(module)}$": {
            key: each[key] for key in known if key in each and module not in left_out
        }
        for module, each in own.items()
    }
    return gptq.read_format(common | {"sym": settings.sym, "lm_head": True, "dynamic": dynamic})
