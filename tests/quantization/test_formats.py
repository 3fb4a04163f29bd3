"""Each format on tensors packed here as its definition says, without files."""

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from jaxserve.errors import CheckpointError
from jaxserve.quantization import WeightLayout, WeightSpec
from jaxserve.quantization.formats import Format, read_format
from jaxserve.quantization.grouped import GroupedMatrix
from jaxserve.quantization.grouped_method import GroupedMethod
from pallas_kernels.packed_linear.codes import CODES

OUTPUTS, INPUTS = 136, 256
MODULE = "model.layers.0.mlp.down_proj"
SPEC = WeightSpec(("ffw", "embed"), (INPUTS, OUTPUTS), ("ffw",))
E4M3 = ml_dtypes.float8_e4m3fn
DTYPES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int8": "I8",
    "uint8": "U8",
    "int32": "I32",
    "int64": "I64",
    "float8_e4m3fn": "F8_E4M3",
}
to_numbers = jax.jit(GroupedMatrix.dequantized)
type Tensors = dict[str, NDArray[Any]]


class Stored:
    """Tensors of a checkpoint in memory."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = {f"{MODULE}.{end}": value for end, value in tensors.items()}

    def get(self, name: str) -> Any:
        value = self.tensors.get(name)
        if value is None:
            return None
        return SimpleNamespace(dtype=DTYPES[value.dtype.name], shape=value.shape)

    def read(self, name: str) -> NDArray[Any]:
        return self.tensors[name]


def words(numbers: NDArray[Any], bits: int) -> NDArray[np.int32]:
    """Pack numbers into int32 along the last axis, the lowest bits first."""
    per_word = 32 // bits
    parts = numbers.astype(np.uint32).reshape(*numbers.shape[:-1], -1, per_word)
    return (
        (parts << (np.arange(per_word, dtype=np.uint32) * bits))
        .sum(-1, dtype=np.uint32)
        .view(np.int32)
    )


def integers(shape: tuple[int, ...], beyond: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, beyond, shape, dtype=np.int32)


def scales(*shape: int, dtype: Any = np.float32, seed: int = 1) -> NDArray[Any]:
    found: NDArray[Any] = np.random.default_rng(seed).uniform(0.01, 0.1, shape).astype(dtype)
    return found


def wide(groups: NDArray[Any], size: int) -> NDArray[np.float32]:
    return np.repeat(groups.astype(np.float32), size, axis=1)


def gptq(bits: int, version: str, *, has_order: bool) -> tuple[Any, Tensors, NDArray[Any]]:
    size, beyond = 64, 1 << bits
    q, z = integers((OUTPUTS, INPUTS), beyond), integers((INPUTS // size, OUTPUTS), beyond, 2)
    s = scales(INPUTS // size, OUTPUTS, dtype=np.float16)
    group_of = np.arange(INPUTS, dtype=np.int32) // size
    if has_order:
        group_of = np.random.default_rng(3).permutation(group_of)
    tensors = {
        "qweight": np.ascontiguousarray(words(q, bits).T),
        "qzeros": words(z, bits),
        "scales": s,
        "g_idx": group_of,
    }
    zeros = (z + (version == "gptq"))[group_of].T
    expected = (q - zeros).astype(np.float32) * s[group_of].T.astype(np.float32)
    settings = {"quant_method": "gptq", "bits": bits, "group_size": size, "desc_act": has_order}
    return settings | {"checkpoint_format": version}, tensors, expected


def awq() -> tuple[Any, Tensors, NDArray[Any]]:
    size, places = 32, [0, 2, 4, 6, 1, 3, 5, 7]  # the output at each place of a word
    q, z = integers((INPUTS, OUTPUTS), 16), integers((INPUTS // size, OUTPUTS), 16, 2)
    s = scales(INPUTS // size, OUTPUTS, dtype=np.float16)

    def packed(numbers: NDArray[Any]) -> NDArray[np.int32]:
        eights = numbers.reshape(len(numbers), -1, 8)[..., places]
        return words(eights.reshape(len(numbers), -1), 4)

    expected = (q - np.repeat(z, size, 0)).astype(np.float32) * np.repeat(s, size, 0).astype(
        np.float32
    )
    settings = {"quant_method": "awq", "bits": 4, "group_size": size, "version": "gemm"}
    return settings, {"qweight": packed(q), "qzeros": packed(z), "scales": s}, expected.T


def ct(form: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "format": form}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}


def ct_packed(bits: int, *, is_symmetric: bool, has_order: bool) -> tuple[Any, Tensors, Any]:
    size, beyond, middle = 32, 1 << bits, 1 << (bits - 1)
    q = integers((OUTPUTS, INPUTS), beyond)
    s = scales(OUTPUTS, INPUTS // size, dtype=ml_dtypes.bfloat16)
    z = integers((OUTPUTS, INPUTS // size), beyond, 2)
    if is_symmetric:
        z = np.full_like(z, middle)
    group_of = np.arange(INPUTS, dtype=np.int32) // size
    if has_order:
        group_of = np.random.default_rng(3).permutation(group_of)
    tensors: Tensors = {
        "weight_packed": words(q, bits),
        "weight_scale": s,
        "weight_shape": np.array([OUTPUTS, INPUTS]),
    }
    if not is_symmetric:
        tensors["weight_zero_point"] = np.ascontiguousarray(words(z.T, bits).T)
    if has_order:
        tensors["weight_g_idx"] = group_of
    settings = ct(
        "pack-quantized",
        num_bits=bits,
        type="int",
        symmetric=is_symmetric,
        strategy="group",
        group_size=size,
        actorder="group" if has_order else None,
    )
    expected = (q - z[:, group_of]).astype(np.float32) * s.astype(np.float32)[:, group_of]
    return settings, tensors, expected


def ct_eight(strategy: str) -> tuple[Any, Tensors, NDArray[Any]]:
    """Return FP8 weights with a scale for the matrix, each output or each block."""
    q = np.random.default_rng(0).normal(0, 30, (OUTPUTS, INPUTS)).astype(E4M3)
    shape = {"tensor": (1,), "channel": (OUTPUTS, 1), "block": (2, 2)}[strategy]
    s = scales(*shape)
    blocks = np.kron(s, np.ones((128, 128), np.float32)) if strategy == "block" else s
    expected = q.astype(np.float32) * (blocks[:OUTPUTS] if strategy == "block" else blocks)
    block = {"block_structure": [128, 128]} if strategy == "block" else {}
    settings = ct("float-quantized", num_bits=8, type="float", strategy=strategy, **block)
    return settings, {"weight": q, "weight_scale": s, "input_scale": scales(1)}, expected


def ct_int8() -> tuple[Any, Tensors, NDArray[Any]]:
    q, s = (integers((OUTPUTS, INPUTS), 256) - 128).astype(np.int8), scales(OUTPUTS, 1)
    settings = ct("int-quantized", num_bits=8, type="int", strategy="channel")
    return settings, {"weight": q, "weight_scale": s}, q.astype(np.float32) * s


def fp4(end: str) -> tuple[Tensors, NDArray[np.float32]]:
    q = integers((OUTPUTS, INPUTS), 16)
    packed = (q[:, ::2] | q[:, 1::2] << 4).astype(np.uint8)
    return {end: packed}, np.array(CODES["fp4"].table, np.float32)[q]


def powers(size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    exponents = integers((OUTPUTS, INPUTS // size), 20, 4).astype(np.uint8) + np.uint8(110)
    return exponents, wide(np.exp2(exponents.astype(np.float32) - 127), size)


def ct_mxfp4() -> tuple[Any, Tensors, NDArray[Any]]:
    tensors, values = fp4("weight_packed")
    exponents, factors = powers(32)
    settings = ct("mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32)
    return settings, tensors | {"weight_scale": exponents}, values * factors


def ct_mxfp8() -> tuple[Any, Tensors, NDArray[Any]]:
    q = np.random.default_rng(0).normal(0, 30, (OUTPUTS, INPUTS)).astype(E4M3)
    exponents, factors = powers(32)
    settings = ct("mxfp8-quantized", num_bits=8, type="float", strategy="group", group_size=32)
    return settings, {"weight": q, "weight_scale": exponents}, q.astype(np.float32) * factors


def nvfp4(maker: str) -> tuple[Any, Tensors, NDArray[Any]]:
    is_ct = maker == "ct"
    tensors, values = fp4("weight_packed" if is_ct else "weight")
    s = np.random.default_rng(5).uniform(1, 400, (OUTPUTS, INPUTS // 16)).astype(E4M3)
    outer = np.array([256.0], np.float32)  # a power of two, whose reciprocal is exact
    tensors["weight_scale"] = s
    if is_ct:
        settings = ct(
            "nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16
        )
        return settings, tensors | {"weight_global_scale": outer}, values * wide(s, 16) / outer
    settings = {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}
    outer = np.array(0.0123, np.float32)
    factors = wide(s.astype(np.float32) * outer, 16)
    return settings, tensors | {"weight_scale_2": outer}, values * factors


def modelopt_awq() -> tuple[Any, Tensors, NDArray[Any]]:
    q = integers((OUTPUTS, INPUTS), 16) - 8
    pairs = (q.reshape(-1, 2, INPUTS) & 15).astype(np.uint8)
    s, factors = scales(OUTPUTS, INPUTS // 128), scales(INPUTS, dtype=ml_dtypes.bfloat16, seed=6)
    tensors = {
        "weight": pairs[:, 0] | pairs[:, 1] << 4,
        "weight_scale": s,
        "pre_quant_scale": factors,
    }
    expected = q.astype(np.float32) * wide(s, 128) * factors.astype(np.float32)
    return {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}, tensors, expected


def modelopt_int8() -> tuple[Any, Tensors, NDArray[Any]]:
    q, s = (integers((OUTPUTS, INPUTS), 256) - 128).astype(np.int8), scales(OUTPUTS)
    factors = scales(INPUTS, seed=6)
    tensors = {"weight": q, "weight_scale": s, "pre_quant_scale": factors}
    expected = q.astype(np.float32) * s[:, None] * factors
    return {"quant_method": "modelopt", "quant_algo": "W8A8_SQ_PER_CHANNEL"}, tensors, expected


def hf_fp8(*, has_blocks: bool) -> tuple[Any, Tensors, NDArray[Any]]:
    settings, tensors, expected = ct_eight("block" if has_blocks else "tensor")
    s = tensors["weight_scale"] if has_blocks else tensors["weight_scale"].reshape(())
    block = [128, 128] if has_blocks else None
    settings = {"quant_method": "fp8", "weight_block_size": block, "activation_scheme": "dynamic"}
    return settings, {"weight": tensors["weight"], "weight_scale_inv": s}, expected


def bnb(kind: str, *, is_nested: bool) -> tuple[Any, Tensors, NDArray[Any]]:
    q, table = integers((OUTPUTS * INPUTS,), 16), CODES["nf4" if kind == "nf4" else "bnb_fp4"].table
    values = np.array(table, np.float32)
    state: dict[str, Any] = {"quant_type": kind, "blocksize": 64, "shape": [OUTPUTS, INPUTS]}
    absmax: NDArray[Any] = scales(OUTPUTS * INPUTS // 64)
    tensors: Tensors = {"weight.quant_map": values}
    if is_nested:
        state |= {"nested_blocksize": 256, "nested_offset": 0.0423}
        codes = integers((absmax.size,), 256, 7).astype(np.uint8)
        nested, outer = np.linspace(-1, 1, 256, dtype=np.float32), scales(-(-absmax.size // 256))
        tensors |= {"weight.nested_quant_map": nested, "weight.nested_absmax": outer}
        tensors["weight.absmax"] = codes
        absmax = nested[codes] * np.repeat(outer, 256)[: codes.size] + np.float32(0.0423)
    else:
        tensors["weight.absmax"] = absmax
    text = json.dumps(state).encode()
    tensors[f"weight.quant_state.bitsandbytes__{kind}"] = np.frombuffer(text, np.uint8)
    tensors["weight"] = (q[::2] << 4 | q[1::2]).astype(np.uint8)[:, None]
    settings = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": is_nested,
    }
    expected = (values[q] * np.repeat(absmax, 64)).reshape(OUTPUTS, INPUTS)
    return settings, tensors, expected


CASES = {
    "gptq-4-v1": gptq(4, "gptq", has_order=False),
    "gptq-4-order": gptq(4, "gptq", has_order=True),
    "gptq-4-v2": gptq(4, "gptq_v2", has_order=False),
    "gptq-8-v1": gptq(8, "gptq", has_order=False),
    "awq": awq(),
    "ct-4": ct_packed(4, is_symmetric=True, has_order=False),
    "ct-4-zeros-order": ct_packed(4, is_symmetric=False, has_order=True),
    "ct-8": ct_packed(8, is_symmetric=True, has_order=False),
    "ct-8-zeros": ct_packed(8, is_symmetric=False, has_order=False),
    "ct-int8": ct_int8(),
    "ct-fp8-tensor": ct_eight("tensor"),
    "ct-fp8-channel": ct_eight("channel"),
    "ct-fp8-block": ct_eight("block"),
    "ct-nvfp4": nvfp4("ct"),
    "ct-mxfp4": ct_mxfp4(),
    "ct-mxfp8": ct_mxfp8(),
    "fp8-tensor": hf_fp8(has_blocks=False),
    "fp8-block": hf_fp8(has_blocks=True),
    "modelopt-nvfp4": nvfp4("modelopt"),
    "modelopt-awq": modelopt_awq(),
    "modelopt-int8": modelopt_int8(),
    "bnb-nf4": bnb("nf4", is_nested=False),
    "bnb-nf4-double": bnb("nf4", is_nested=True),
    "bnb-fp4": bnb("fp4", is_nested=False),
}


def loaded(settings: Mapping[str, object], tensors: Tensors, layout: WeightLayout) -> Any:
    """Return the matrix that a checkpoint with these settings and tensors has."""
    stored = Stored(tensors)
    method = read_format(settings).method(MODULE, "Linear", stored)
    assert method is not None
    name = f"{MODULE}.weight"
    components = method.components(name, (OUTPUTS, INPUTS))
    for each in components.values():
        info = stored.get(each.name)
        assert info is not None, each.name
        assert info.shape == each.shape
        assert info.dtype in each.dtypes
    needed = {each.name for each in components.values()}
    assert stored.tensors.keys() <= needed | set(method.unused_names(name))
    read = {
        key: stored.read(each.name) if each.parse is None else each.parse(stored.read(each.name))
        for key, each in components.items()
    }
    unpacked = method.unpack({key: jnp.asarray(value) for key, value in read.items()}, layout)
    return method.from_tensors({key: each.T for key, each in unpacked.items()}, SPEC, layout)


@pytest.mark.parametrize("name", CASES)
def test_a_format_means_the_numbers_of_its_definition(name: str) -> None:
    settings, tensors, expected = CASES[name]
    matrix = loaded(settings, tensors, WeightLayout())
    np.testing.assert_array_max_ulp(
        np.asarray(jax.jit(type(matrix).dequantized)(matrix)).T, expected, 0
    )


FOUR_BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True}
REFUSED = [
    ({"quant_method": "hqq"}, "hqq"),
    ({}, "quant_method = None"),
    ({"quant_method": "gptq", "bits": 3}, "bits"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size"),
    ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format"),
    ({"quant_method": "gptq", "bits": 4, "rotation": "hadamard"}, "rotation"),
    ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:(": {}}}, "regular expression"),
    ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "gemv"),
    ({"quant_method": "awq", "bits": 4, "zero_point": False}, "zero_point"),
    (ct("marlin-24", num_bits=4), "marlin-24"),
    (ct("pack-quantized", num_bits=3, strategy="group", group_size=32), "3 bits"),
    (ct("int-quantized", num_bits=8) | {"transform_config": {"config_groups": {"u": 1}}}, "transf"),
    (ct("int-quantized", num_bits=8) | {"sparsity_config": {"format": "sparse-24"}}, "sparse-24"),
    ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size"),
    ({"quant_method": "fp8", "fmt": "e5m2"}, "e5m2"),
    ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "W4A8_AWQ"),
    ({"quant_method": "bitsandbytes"}, "load_in_4bit"),
    (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_storage": "bf16"},
        "bf16",
    ),
    ({"quant_method": "mxfp4", "block": 16}, "block"),
]


@pytest.mark.parametrize(("settings", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_unknown_settings_are_refused_by_name(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read_format(settings).method(MODULE, "Linear", Stored({}))


LEFT_OUT = [
    {"quant_method": "gptq", "bits": 4, "dynamic": {r"-:.*\.layers\.0\.": {}}},
    {"quant_method": "gptq", "bits": 4, "modules_in_block_to_quantize": [["mlp.up_proj"]]},
    {"quant_method": "awq", "bits": 4, "modules_to_not_convert": ["down_proj"]},
    ct("int-quantized", num_bits=8) | {"ignore": [r"re:.*down_proj"]},
    ct("int-quantized", num_bits=8) | {"ignore": [MODULE]},
    {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.0"]},
    {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["model.layers.0*"]},
    {"quant_method": "modelopt", "quant_algo": "FP8", "exclude_modules": ["model.layers.0.mlp"]},
    {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": ["down_proj"]},
]


@pytest.mark.parametrize("settings", LEFT_OUT)
def test_modules_that_the_settings_leave_out_are_not_quantized(settings: dict[str, Any]) -> None:
    form = read_format(settings)
    assert form.method(MODULE, "Linear", Stored({})) is None
    other = MODULE.replace("layers.0", "layers.1").replace("down", "up")
    assert form.method(other, "Linear", Stored({})) is not None


def code_of(form: Format, module: str) -> str:
    method = form.method(module, "Linear", Stored({}))
    assert isinstance(method, GroupedMethod)
    return method.groups.code


def test_groups_of_one_checkpoint_may_differ() -> None:
    up = MODULE.replace("down", "up")
    settings = ct("int-quantized", num_bits=8, strategy="channel")
    own = {"num_bits": 4, "strategy": "group", "group_size": 32}
    named = {"targets": [r"re:.*down_proj"], "weights": own, "format": "pack-quantized"}
    settings["config_groups"]["group_1"] = named
    form = read_format(settings)
    assert (code_of(form, MODULE), code_of(form, up)) == ("int4", "int8")
    dynamic = {r"+:.*up_proj": {"bits": 8, "group_size": 32}}
    form = read_format({"quant_method": "gptq", "bits": 4, "dynamic": dynamic})
    assert (code_of(form, MODULE), code_of(form, up)) == ("uint4", "uint8")
    auto = {"bits": 4, "group_size": 64, "packing_format": "auto_round:auto_gptq"}
    own = {up: {"bits": 8}, "lm_head": {"bits": 16}}
    form = read_format({"quant_method": "auto-round", "extra_config": own, **auto})
    assert (code_of(form, MODULE), code_of(form, up)) == ("uint4", "uint8")
    assert form.method("lm_head", "Linear", Stored({})) is None


def test_a_bias_of_zeros_is_not_missed_in_gptq() -> None:
    settings, tensors, _ = CASES["gptq-4-v1"]
    for bias, is_unused in ((np.zeros(OUTPUTS, np.float16), True), (scales(OUTPUTS), False)):
        stored = Stored(tensors | {"bias": bias})
        method = read_format(settings).method(MODULE, "Linear", stored)
        assert method is not None
        assert (f"{MODULE}.bias" in method.unused_names(f"{MODULE}.weight")) == is_unused
