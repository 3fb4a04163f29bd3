"""Base of the methods of quantized checkpoints: they all make a GroupedMatrix."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxserve.errors import ConfigError
from jaxserve.quantization.grouped import E8M0, SCALES, GroupedMatrix, Groups, decoded
from jaxserve.quantization.layout import Component, WeightLayout, shardings_of
from jaxserve.quantization.matrix import WeightSpec

# Largest value that `quantize` uses of each code, and zero points of unsigned ones.
_LARGEST = {
    "uint4": 7.0,
    "int4": 7.0,
    "fp4": 6.0,
    "nf4": 1.0,
    "bnb_fp4": 1.0,
    "uint8": 127.0,
    "int8": 127.0,
    "e4m3": 448.0,
}
_ZEROS = {"uint4": 8, "uint8": 128}


@dataclass(frozen=True, kw_only=True)
class GroupedMethod:
    """Base of the methods of checkpoints: `components` and `unpack` are a format's own.

    `unpack` returns "codes" [outputs, inputs], "scales" and "zeros" [outputs, groups], "outer"
    [outputs, 1], "order" and "factors" [1, inputs], as `groups` says. unused: endings of the names
    of stored tensors of a module that a product does not need. shared: endings of those of inputs,
    which must be the same in all modules that are joined.
    """

    groups: Groups
    unused: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()

    def components(self, name: str, shape: Sequence[int]) -> Mapping[str, Component]:
        """See Method."""
        raise NotImplementedError

    def unpack(self, stored: Mapping[str, Array], layout: WeightLayout) -> Mapping[str, Array]:
        """See Method."""
        raise NotImplementedError

    def unused_names(self, name: str) -> tuple[str, ...]:
        """See Method."""
        module = name.removesuffix(".weight")
        # Those of keys and values belong to the attention.
        owners = (module, module.rpartition(".")[0])
        return tuple(f"{owner}.{end}" for owner in owners for end in self.unused)

    def describe(self, spec: WeightSpec, layout: WeightLayout) -> GroupedMatrix:
        """Describe the matrix. Raises ConfigError if it or its shards do not divide into groups."""
        groups, stacked, channels = self.groups, spec.stacked, spec.channels
        num_inputs = prod(spec.sizes_of(spec.summed))
        num_groups = 1 if groups.size is None else num_inputs // groups.size
        num_shards = 1 if layout.sharding is None else layout.sharding.num_shards(spec.summed[0])
        self._check(num_inputs, num_shards, spec)

        def leaf(length: int, dtype: str) -> jax.ShapeDtypeStruct:
            axes = (*stacked, "" if length == 1 else " ".join(spec.summed), *channels)
            shape = (*spec.sizes_of(stacked), length, *spec.sizes_of(channels))
            return layout.array(axes, shape, dtype)

        def of_inputs(dtype: str) -> jax.ShapeDtypeStruct:
            return layout.array(("",), (num_inputs,), dtype)

        code = groups.of_code
        kept = (*stacked, *channels)
        return GroupedMatrix(
            leaf(num_inputs * code.bits // 8, code.dtype),
            leaf(num_groups, SCALES[groups.scale]),
            leaf(num_groups, groups.zero_dtype) if groups.has_zeros else None,
            layout.array(kept, spec.sizes_of(kept), "float32") if groups.outer else None,
            of_inputs("int32") if groups.has_order else None,
            of_inputs("float32") if groups.has_factors else None,
            groups,
            layout.dtype,
            len(stacked),
            num_shards > 1 and not stacked,
        )

    def from_tensors(
        self, tensors: Mapping[str, Array], spec: WeightSpec, layout: WeightLayout
    ) -> GroupedMatrix:
        """Arrange the tensors of a checkpoint, or quantize a matrix that is not from one."""
        return _assembling(self, spec, layout)(dict(tensors))

    def _check(self, num_inputs: int, num_shards: int, spec: WeightSpec) -> None:
        size, code = self.groups.size or num_inputs, self.groups.of_code
        if spec.stacked and (self.groups.has_order or self.groups.has_factors):
            raise ConfigError(
                "quantized experts must have their inputs in the order of their groups, without"
                " factors of their own"
            )
        if num_inputs % size or num_inputs * code.bits % 8:
            raise ConfigError(
                f"the weights are quantized in groups of {size} inputs, which must divide the"
                f" {num_inputs} inputs of a matrix"
            )
        if self.groups.size is not None and num_inputs // size % num_shards:
            raise ConfigError(
                f"tensor_parallel_size must divide the {num_inputs // size} groups of {size} inputs"
                f" of a quantized matrix, got {num_shards}"
            )


@lru_cache(maxsize=64)
def _assembling(
    method: GroupedMethod, spec: WeightSpec, layout: WeightLayout
) -> Callable[[dict[str, Array]], GroupedMatrix]:
    """Return the compiled assembly of matrices with the same layout."""
    run = partial(_assemble, method=method, spec=spec, layout=layout)
    return jax.jit(run, out_shardings=shardings_of(method.describe(spec, layout)))


def _assemble(
    tensors: dict[str, Array], *, method: GroupedMethod, spec: WeightSpec, layout: WeightLayout
) -> GroupedMatrix:
    groups, num_stacked = method.groups, len(spec.stacked)
    found = {
        key: inputs_first(tensor, spec)
        for key, tensor in tensors.items()
        if key not in {"order", "factors"}
    }
    if "weight" in found:
        found = quantize(found["weight"], groups, axis=num_stacked)
    codes = found["codes"]
    if groups.of_code.table:
        axis = num_stacked
        pairs = codes.reshape(*codes.shape[:axis], -1, 2, *codes.shape[axis + 1 :])
        low, high = (lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in range(2))
        codes = low | high << 4
    num_inputs = prod(spec.sizes_of(spec.summed))
    order = tensors.get("order", jnp.arange(num_inputs)).reshape(-1).astype(jnp.int32)
    factors = tensors.get("factors", jnp.ones(num_inputs)).reshape(-1).astype(jnp.float32)
    return GroupedMatrix(
        codes.astype(groups.of_code.dtype),
        found["scales"],
        found["zeros"].astype(groups.zero_dtype) if groups.has_zeros else None,
        found["outer"].astype(jnp.float32).squeeze(num_stacked) if groups.outer else None,
        order if groups.has_order else None,
        factors if groups.has_factors else None,
        groups,
        layout.dtype,
        num_stacked,
        method.describe(spec, layout).tiles_channels,
    )


def inputs_first(tensor: Array, spec: WeightSpec) -> Array:
    """Return a tensor as [*stacked, inputs, *channels], from the axes of `spec`."""
    stacked, channels = spec.sizes_of(spec.stacked), spec.sizes_of(spec.channels)
    if spec.summed_dims[0] == len(stacked):
        return tensor.reshape(*stacked, -1, *channels)
    return jnp.moveaxis(tensor.reshape(*stacked, *channels, -1), -1, len(stacked))


def quantize(weight: Float[Array, "..."], groups: Groups, *, axis: int) -> dict[str, Array]:
    """Round a matrix to the nearest codes, with the largest of each group as the largest value.

    axis: the inputs. Returns "codes", one a number, and the other tensors of `groups`.
    """
    code = groups.of_code
    before, num_inputs, after = weight.shape[:axis], weight.shape[axis], weight.shape[axis + 1 :]
    num_groups = num_inputs // (groups.size or num_inputs)
    wide = weight.astype(jnp.float32).reshape(*before, num_groups, -1, *after)
    scales = jnp.max(jnp.abs(wide), axis=axis + 1) / _LARGEST[groups.code]
    scales = jnp.where(scales == 0, 1.0, scales)
    if groups.scale == E8M0:
        kept = jnp.clip(jnp.ceil(jnp.log2(scales)) + 127, 1, 254).astype(jnp.uint8)
    else:
        kept = scales.astype(SCALES[groups.scale])
    zero = _ZEROS.get(groups.code, 0)
    ratio = wide / jnp.expand_dims(decoded(kept, groups.scale), axis + 1) + zero
    if code.table:
        values = np.array(code.table, np.float32)
        by_value = np.argsort(values, kind="stable")
        middles = (values[by_value][1:] + values[by_value][:-1]) / 2
        codes = jnp.array(by_value, jnp.uint8)[jnp.searchsorted(jnp.array(middles), ratio)]
    elif groups.code == "e4m3":
        codes = ratio.astype(code.dtype)
    else:
        codes = jnp.round(ratio).astype(code.dtype)
    return {
        "codes": codes.reshape(weight.shape),
        "scales": kept,
        "zeros": jnp.full(kept.shape, zero, groups.zero_dtype),
        "outer": jnp.ones((*before, 1, *after), jnp.float32),
    }
