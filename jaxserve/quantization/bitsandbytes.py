"""Checkpoints of bitsandbytes: NF4, FP4 and int8.

NF4 and FP4 have a scale for each block of numbers (Dettmers et al., 2023, arXiv:2305.14314), int8
one for each output (Dettmers et al., 2022, arXiv:2208.07339).

A matrix of 4-bit codes is stored flat, two numbers a byte with the high bits first. `absmax` is the
scale of each block of numbers. With double quantization it is itself stored as codes of 8 bits,
whose values are in `nested_quant_map`, with scales of their own and a common offset. Activations
are not quantized, and int8 has no outlier decomposition, which would not change the weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import jax.numpy as jnp
import msgspec
import numpy as np
from jax import lax
from jaxtyping import Array
from numpy.typing import NDArray

from jaxserve.errors import CheckpointError
from jaxserve.quantization import unpacking
from jaxserve.quantization.formats import Stored, is_listed, only, read_settings
from jaxserve.quantization.grouped import Groups
from jaxserve.quantization.grouped_method import GroupedMethod
from jaxserve.quantization.layout import Component, WeightLayout
from pallas_kernels.packed_linear.codes import CODES

VARIANTS = "NF4, FP4, both with double quantization; int8"

_BYTES, _FLOATS = frozenset({"U8"}), frozenset({"F32"})
_CODES = {"nf4": "nf4", "fp4": "bnb_fp4"}


class _Settings(msgspec.Struct):
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "fp4"
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_quant_storage: str | None = "uint8"
    llm_int8_skip_modules: list[str] | None = None


_NOTES = (
    "_load_in_4bit",
    "_load_in_8bit",
    "bnb_4bit_compute_dtype",
    "llm_int8_enable_fp32_cpu_offload",
    "llm_int8_has_fp16_weight",
    "llm_int8_threshold",
)


@dataclass(frozen=True, kw_only=True)
class Int8Method(GroupedMethod):
    """Method of one matrix of int8."""

    def components(self, name: str, shape: Sequence[int]) -> Mapping[str, Component]:
        """See Method."""
        module = name.removesuffix(".weight")
        return {
            "codes": Component(name, tuple(shape), frozenset({"I8"})),
            "scales": Component(f"{module}.SCB", (shape[0],), _FLOATS),
        }

    def unpack(self, stored: Mapping[str, Array], layout: WeightLayout) -> Mapping[str, Array]:
        """See Method."""
        del layout
        # SCB is the largest magnitude of an output.
        return {"codes": stored["codes"], "scales": (stored["scales"] / 127)[:, None]}


@dataclass(frozen=True, kw_only=True)
class FourBitMethod(GroupedMethod):
    """Method of one matrix of 4-bit codes.

    state: end of the name of the tensor with the settings of the matrix. state_size: its bytes.
    inputs: of the matrix. nested: scales of a block of scales; None if scales are float32.
    """

    state: str
    state_size: int
    inputs: int
    nested: int | None

    def components(self, name: str, shape: Sequence[int]) -> Mapping[str, Component]:
        """See Method."""
        num_numbers, size = prod(shape), self.groups.size
        assert size is not None
        num_blocks = num_numbers // size
        found = {"codes": Component(name, (num_numbers // 2, 1), _BYTES)}
        if self.nested is None:
            return found | {"scales": Component(f"{name}.absmax", (num_blocks,), _FLOATS)}
        outer = (-(-num_blocks // self.nested),)
        return found | {
            "scales": Component(f"{name}.absmax", (num_blocks,), _BYTES),
            "outer": Component(f"{name}.nested_absmax", outer, _FLOATS),
            "values": Component(f"{name}.nested_quant_map", (256,), _FLOATS),
            "offset": Component(f"{name}.{self.state}", (self.state_size,), _BYTES, _offset),
        }

    def unpack(self, stored: Mapping[str, Array], layout: WeightLayout) -> Mapping[str, Array]:
        """See Method."""
        del layout
        size = self.groups.size
        assert size is not None
        scales = stored["scales"]
        codes = unpacking.nibbles(stored["codes"].reshape(-1), high_first=True)
        if self.nested is not None:
            outer = jnp.repeat(stored["outer"], self.nested)[: scales.size]
            # Rounded before the offset is added, as bitsandbytes does in two steps.
            product = lax.reduce_precision(stored["values"][scales] * outer, 8, 23)
            scales = product + stored["offset"]
        codes = codes.reshape(-1, self.inputs)
        return {"codes": codes, "scales": scales.reshape(codes.shape[0], -1)}

    def unused_names(self, name: str) -> tuple[str, ...]:
        """See Method."""
        ends = ("quant_map", self.state)
        return tuple(f"{name}.{end}" for end in ends)


def _offset(state: NDArray[Any]) -> NDArray[Any]:
    """Return the offset of nested scales from the JSON text of a matrix's settings."""
    return np.array([_State.parsed(state).nested_offset], np.float32)


class _State(msgspec.Struct):
    """Settings of one matrix, a JSON text in a tensor of bytes."""

    quant_type: Literal["nf4", "fp4"]
    blocksize: int
    shape: list[int]
    dtype: str = ""
    nested_blocksize: int | None = None
    nested_offset: float = 0.0
    nested_dtype: Literal["float32"] = "float32"

    @staticmethod
    def parsed(state: NDArray[Any]) -> "_State":
        try:
            return msgspec.json.decode(state.tobytes(), type=_State)
        except msgspec.DecodeError as error:
            raise CheckpointError(f"the quant_state of a matrix cannot be read: {error}") from error


@dataclass(frozen=True)
class _BitsAndBytes:
    settings: _Settings

    def method(self, module: str, kind: str, stored: Stored) -> GroupedMethod | None:
        left_out = self.settings.llm_int8_skip_modules or []
        if kind != "Linear" or is_listed(module, left_out):
            return None
        if self.settings.load_in_8bit:
            return Int8Method(groups=Groups("int8", None, "float32"), unused=("weight_format",))
        return self._four_bits(f"{module}.weight", stored)

    def _four_bits(self, name: str, stored: Stored) -> FourBitMethod:
        code = self.settings.bnb_4bit_quant_type
        end = f"quant_state.bitsandbytes__{code}"
        info = stored.get(f"{name}.{end}")
        if info is None:
            raise CheckpointError(f"{name}.{end} is missing: bitsandbytes needs its block size")
        state = _State.parsed(stored.read(f"{name}.{end}"))
        if len(state.shape) != 2 or state.shape[1] % state.blocksize:
            raise CheckpointError(
                f"{name} has blocks of {state.blocksize} numbers; jaxserve supports blocks within"
                f" the rows of a matrix, got {state.shape}"
            )
        table = np.array(CODES[_CODES[code]].table, np.float32)
        if stored.get(f"{name}.quant_map") is None or not np.array_equal(
            stored.read(f"{name}.quant_map"), table
        ):
            raise CheckpointError(f"{name}.quant_map must have the {code} values of bitsandbytes")
        has_nested = self.settings.bnb_4bit_use_double_quant
        return FourBitMethod(
            groups=Groups(_CODES[code], state.blocksize, "float32"),
            state=end,
            state_size=info.shape[0],
            inputs=state.shape[1],
            nested=state.nested_blocksize if has_nested else None,
        )


def read_format(values: Mapping[str, object]) -> _BitsAndBytes:
    """Read the settings of a bitsandbytes checkpoint. Raises CheckpointError."""
    settings = read_settings(_Settings, values, notes=_NOTES)
    storage = settings.bnb_4bit_quant_storage
    only(storage in {None, "uint8"}, f"bnb_4bit_quant_storage must be uint8, got {storage!r}")
    only(
        settings.load_in_4bit != settings.load_in_8bit,
        "one of load_in_4bit and load_in_8bit must be true",
    )
    return _BitsAndBytes(settings)
