"""Checkpoints of compressed-tensors, the format of LLM Compressor.

Each group of `config_groups` has targets, by module class, name or regular expression, and says how
their weights are stored: `pack-quantized` integers, eight in an int32 along the inputs, with an
offset; `int-quantized` and `float-quantized` numbers of 8 bits; NVFP4, MXFP4 and MXFP8 (OCP
Microscaling Formats 1.0). Weights have the numbers that the format means. Activations are not
quantized: results are at least as exact as the format's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import msgspec
from jaxtyping import Array

from jaxserve.errors import CheckpointError
from jaxserve.quantization import unpacking
from jaxserve.quantization.formats import Stored, only, read_settings, regex_match, scale_kind
from jaxserve.quantization.grouped import E8M0, Groups
from jaxserve.quantization.grouped_method import GroupedMethod
from jaxserve.quantization.layout import Component, WeightLayout
from jaxserve.quantization.stored_codes import (
    UNUSED,
    StoredCodes,
    StoredScales,
    eight_bits,
    rank_of,
)

VARIANTS = (
    "W4A16 and W8A16 with and without zero points and act-order; W8A8 int8; FP8 per tensor, "
    "channel, group or block; NVFP4; MXFP4; MXFP8; several groups, `ignore`"
)

_PACKED = "pack-quantized"
_NVFP4 = "nvfp4-pack-quantized"
_MXFP4 = "mxfp4-pack-quantized"
_MXFP8 = ("mxfp8-quantized", "mxfp8-pack-quantized")
_PLAIN = ("int-quantized", "float-quantized", "naive-quantized")
_UNUSED = (*UNUSED, "weight_shape")
_ORDERS = (None, False, "weight", "static", "group", "dynamic", True)

type _Strategy = Literal["tensor", "channel", "group", "block", "tensor_group", "token"]


class _Args(msgspec.Struct):
    """How the numbers of a tensor are quantized."""

    num_bits: int
    type: Literal["int", "float"] = "int"
    symmetric: bool = True
    strategy: _Strategy | None = None
    group_size: int | None = None
    block_structure: list[int] | str | None = None
    dynamic: bool | str = False
    actorder: str | bool | None = None


_ARGS_NOTES = ("observer", "observer_kwargs", "scale_dtype", "zp_dtype")


class _Group(msgspec.Struct):
    targets: list[str]
    weights: dict[str, Any] | None = None
    input_activations: dict[str, Any] | None = None
    output_activations: None = None
    format: str | None = None


class _Settings(msgspec.Struct):
    config_groups: dict[str, dict[str, Any]] = {}
    format: str = "dense"
    ignore: list[str] | None = None
    kv_cache_scheme: dict[str, Any] | None = None
    sparsity_config: dict[str, Any] | None = None
    transform_config: dict[str, Any] | None = None
    quantization_status: Literal["compressed", "frozen"] = "compressed"


@dataclass(frozen=True, kw_only=True)
class PackedMethod(GroupedMethod):
    """Method of one matrix of integers packed into int32. has_zeros: see Groups."""

    scales: StoredScales

    def components(self, name: str, shape: Sequence[int]) -> Mapping[str, Component]:
        """See Method."""
        module, (outputs, inputs) = name.removesuffix(".weight"), shape
        per_word = 32 // self.groups.of_code.bits
        num_groups = 1 if self.groups.size is None else inputs // self.groups.size
        integers = frozenset({"I32"})
        words = (outputs, -(-inputs // per_word))
        found = {
            "codes": Component(f"{module}.weight_packed", words, integers),
            "scales": Component(f"{module}.weight_scale", self.scales.shape(outputs, num_groups)),
        }
        if self.groups.has_zeros:
            words = (-(-outputs // per_word), num_groups)
            found["zeros"] = Component(f"{module}.weight_zero_point", words, integers)
        if self.groups.has_order:
            found["g_idx"] = Component(f"{module}.weight_g_idx", (inputs,), integers)
        return found

    def unpack(self, stored: Mapping[str, Array], layout: WeightLayout) -> Mapping[str, Array]:
        """See Method."""
        del layout
        bits = self.groups.of_code.bits
        # Stored with an offset, which zero points have too: the differences are the same.
        codes = unpacking.words(stored["codes"], bits)
        if not self.groups.has_zeros and bits == 8:
            codes = (codes ^ 128).astype(jnp.int8)
        outputs = codes.shape[0]
        found = {
            "codes": codes,
            "scales": self.scales.unpack(stored["scales"], self.groups.scale, outputs),
        }
        if self.groups.has_zeros:
            found["zeros"] = unpacking.words(stored["zeros"].T, bits).T[:outputs]
        if self.groups.has_order:
            order = unpacking.group_order(stored["g_idx"])
            found |= {"codes": codes[:, order], "order": order[None]}
        return found


@dataclass(frozen=True)
class _CompressedTensors:
    groups: tuple[tuple[tuple[str, ...], _Args, str], ...]  # targets, weights, format
    ignored: tuple[str, ...]

    def method(self, module: str, kind: str, stored: Stored) -> GroupedMethod | None:
        if any(_is_target(each, module, kind) for each in self.ignored):
            return None
        # A name is more specific than a class.
        for own_kind in ("", kind):
            for targets, args, form in self.groups:
                if any(_is_target(each, module, own_kind) for each in targets):
                    return _method(module, args, form, stored)
        return None


def _is_target(target: str, module: str, kind: str) -> bool:
    if target.startswith("re:"):
        return regex_match(target.removeprefix("re:"), module)
    return target in {module, kind}


def _method(module: str, args: _Args, form: str, stored: Stored) -> GroupedMethod:
    if form == _PACKED:
        return _packed(module, args, stored)
    if form in _PLAIN:
        return _plain(module, args, stored)
    code, scale, size = {
        _NVFP4: ("fp4", "e4m3", 16),
        _MXFP4: ("fp4", E8M0, 32),
    }.get(form, ("e4m3", E8M0, 32))
    has_outer = form == _NVFP4
    return StoredCodes(
        groups=Groups(code, size, scale, outer="divide" if has_outer else None),
        unused=_UNUSED,
        scales=StoredScales(name="weight_scale", per="group"),
        name="weight" if code == "e4m3" else "weight_packed",
        outer="weight_global_scale" if has_outer else "",
        outer_rank=rank_of(stored, f"{module}.weight_global_scale", 1),
    )


def _packed(module: str, args: _Args, stored: Stored) -> PackedMethod:
    name = f"{module}.weight_scale"
    has_order = stored.get(f"{module}.weight_g_idx") is not None
    size = args.group_size if args.strategy == "group" else None
    code = f"int{args.num_bits}" if args.symmetric else f"uint{args.num_bits}"
    groups = Groups(
        code,
        size,
        scale_kind(stored, name, default="bfloat16"),
        has_zeros=not args.symmetric,
        has_order=has_order,
    )
    return PackedMethod(
        groups=groups,
        unused=_UNUSED,
        shared=("weight_g_idx",) if has_order else (),
        scales=_scales(args, rank_of(stored, name, 2)),
    )


def _plain(module: str, args: _Args, stored: Stored) -> StoredCodes:
    scales = _scales(args, rank_of(stored, f"{module}.weight_scale", 2))
    code = "int8" if args.type == "int" else "e4m3"
    zeros = "" if args.symmetric else "weight_zero_point"
    return eight_bits(module, code, scales, stored, zeros=zeros)


def _scales(args: _Args, rank: int) -> StoredScales:
    size = args.group_size or 1
    match args.strategy:
        case "tensor" | "channel":
            return StoredScales(name="weight_scale", per=args.strategy, rank=rank)
        case "group":
            return StoredScales(name="weight_scale", per="group", block=(1, size))
        case _:
            return StoredScales(name="weight_scale", per="block", block=_block(args))


def _block(args: _Args) -> tuple[int, int]:
    block = args.block_structure
    sizes = [int(size) for size in block.split("x")] if isinstance(block, str) else block
    only(
        isinstance(sizes, list) and len(sizes) == 2 and min(sizes) > 0,
        f"block_structure must be two positive sizes, got {block!r}",
    )
    assert sizes is not None
    return sizes[0], sizes[1]


def read_format(values: Mapping[str, object]) -> _CompressedTensors:
    """Read the settings of a compressed-tensors checkpoint. Raises CheckpointError."""
    notes = ("global_compression_ratio", "version", "producer")
    settings = read_settings(_Settings, values, notes=notes)
    sparsity = (settings.sparsity_config or {}).get("format", "dense")
    only(sparsity == "dense", f"sparsity_config must have the format dense, got {sparsity!r}")
    transforms = (settings.transform_config or {}).get("config_groups")
    only(not transforms, "transform_config is not supported")
    groups = []
    for name, each in settings.config_groups.items():
        where = f"quantization_config.config_groups.{name}"
        group = read_settings(_Group, each, where=where)
        if group.weights is None:  # of activations only, such as keys and values
            continue
        args = read_settings(_Args, group.weights, notes=_ARGS_NOTES, where=f"{where}.weights")
        form = group.format or settings.format
        groups.append((tuple(group.targets), _checked(args, form, where), form))
    return _CompressedTensors(tuple(groups), tuple(settings.ignore or ()))


def _checked(args: _Args, form: str, where: str) -> _Args:
    """Return the settings of weights with their strategy. Raises CheckpointError."""
    usual: _Strategy = "tensor"
    if args.group_size is not None:
        usual = "group"
    elif args.block_structure is not None:
        usual = "block"
    args = msgspec.structs.replace(args, strategy=args.strategy or usual)
    size, bits = args.group_size, args.num_bits
    if size == -1:
        args = msgspec.structs.replace(args, strategy="channel", group_size=None)
    kinds: Mapping[str, tuple[set[Any], ...]] = {
        _PACKED: ({("int", 4), ("int", 8)}, {"tensor", "channel", "group"}, {None, size}),
        "int-quantized": ({("int", 8)}, {"tensor", "channel", "group"}, {None, size}),
        "float-quantized": ({("float", 8)}, {"tensor", "channel", "group", "block"}, {None, size}),
        "naive-quantized": (
            {("float", 8), ("int", 8)},
            {"tensor", "channel", "group", "block"},
            {None, size},
        ),
        _NVFP4: ({("float", 4)}, {"tensor_group", "group"}, {16}),
        _MXFP4: ({("float", 4)}, {"group"}, {32}),
        **dict.fromkeys(_MXFP8, ({("float", 8)}, {"group"}, {32})),
    }
    if form not in kinds:
        raise CheckpointError(
            f"{where} has format = {form!r}; jaxserve supports {', '.join(kinds)}"
        )
    numbers, strategies, sizes = kinds[form]
    found = f"{args.type} weights of {bits} bits, strategy {args.strategy}, group_size {size}"
    if (args.type, bits) not in numbers or args.strategy not in strategies or size not in sizes:
        raise CheckpointError(f"{where} has {found}, which {form} does not have here")
    if args.strategy == "group" and (size is None or size < 1):
        raise CheckpointError(f"{where} has group_size = {size}; jaxserve supports positive sizes")
    if args.actorder not in _ORDERS or args.dynamic:
        raise CheckpointError(
            f"{where} has actorder = {args.actorder!r} and dynamic = {args.dynamic!r} for weights"
        )
    return args
