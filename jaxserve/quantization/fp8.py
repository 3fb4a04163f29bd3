"""FP8 checkpoints of transformers, as DeepSeek-V3 and Qwen3 publish them (arXiv:2412.19437, 3.3).

Weights are E4M3 with one scale for the matrix, or one for each block of outputs and inputs. Both
may be called `weight_scale_inv`: they are multiplied all the same. Activations are not quantized.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from jaxserve.quantization.formats import Stored, is_listed, only, read_settings
from jaxserve.quantization.stored_codes import StoredCodes, StoredScales, eight_bits, rank_of

VARIANTS = "E4M3 per tensor, or per block of any size"

_SCALES = ("weight_scale_inv", "weight_scale")


class _Settings(msgspec.Struct):
    activation_scheme: Literal["static", "dynamic"] = "dynamic"
    weight_block_size: list[int] | None = None
    modules_to_not_convert: list[str] | None = None
    ignored_layers: list[str] | None = None
    fmt: Literal["e4m3", "float8_e4m3fn"] = "e4m3"
    scale_fmt: Literal["ue8m0", "float"] | None = None
    dequantize: bool = False


@dataclass(frozen=True)
class _Fp8:
    block: tuple[int, int] | None
    left_out: tuple[str, ...]

    def method(self, module: str, kind: str, stored: Stored) -> StoredCodes | None:
        if kind != "Linear" or is_listed(module, self.left_out):
            return None
        names = [name for name in _SCALES if stored.get(f"{module}.{name}") is not None]
        name = (names or _SCALES)[0]
        if self.block is not None:
            scales = StoredScales(name=name, per="block", block=self.block)
        else:
            rank = rank_of(stored, f"{module}.{name}", 0)
            scales = StoredScales(name=name, per="tensor", rank=rank)
        return eight_bits(module, "e4m3", scales, stored)


def read_format(values: Mapping[str, object]) -> _Fp8:
    """Read the settings of an FP8 checkpoint. Raises CheckpointError."""
    settings = read_settings(_Settings, values, notes=("store_dtype", "kv_cache_scheme"))
    sizes = settings.weight_block_size
    only(
        sizes is None or (len(sizes) == 2 and min(sizes) > 0),
        f"weight_block_size must be two positive sizes, got {sizes}",
    )
    left_out = (*(settings.modules_to_not_convert or ()), *(settings.ignored_layers or ()))
    return _Fp8(None if sizes is None else (sizes[0], sizes[1]), left_out)
