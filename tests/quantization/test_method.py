"""A method and a matrix of one's own: stored in 4 bits, and with adapters on top."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.typing import DTypeLike
from numpy.typing import NDArray
from safetensors.numpy import save_file

from jaxserve.errors import CheckpointError
from jaxserve.layers.attention import attend_dense
from jaxserve.layers.linear import einsum
from jaxserve.loading.checkpoint import Checkpoint
from jaxserve.loading.weights import load_params
from jaxserve.models import abstract_params, bind, config_from_hf, init_model, params_of
from jaxserve.parallel.sharding import ShardingPlan, make_mesh
from jaxserve.quantization import ARRAYS, Component, Matrix, Rows, WeightLayout, WeightSpec
from jaxserve.quantization.matrix import as_matrix
from tests.goldens.checkpoints import tensors, tiny_config, write_checkpoint

CONFIG = tiny_config("qwen3", intermediate_size=64)
MODEL = config_from_hf(CONFIG)
GROUP = 16


@partial(jax.tree_util.register_dataclass, data_fields=["values", "scales"], meta_fields=["spec"])
@dataclass(frozen=True)
class GroupMatrix(Matrix):
    """4-bit numbers with a scale for every GROUP inputs of a channel."""

    values: Any  # int8, the axes of the matrix
    scales: Any  # float32[groups, *kept]
    spec: WeightSpec

    def einsum(self, spec: str, x: Array, rows: Rows, *, dtype: DTypeLike) -> Array:
        kept = self.spec.sizes_of(self.spec.kept)
        grouped = x.reshape(x.shape[0], -1, GROUP)
        values = self.values.reshape(grouped.shape[1], GROUP, prod(kept)).astype(x.dtype)
        sums = jnp.einsum("tgi,gin->tgn", grouped, values)
        product = jnp.einsum("tgn,gn->tn", sums, self.scales.reshape(-1, prod(kept)))
        return product.reshape(-1, *kept).astype(dtype)

    def take(self, indices: Array, rows: Rows) -> Array:
        raise NotImplementedError("tables stay arrays")

    @property
    def num_weights(self) -> int:
        return int(self.values.size)


@dataclass(frozen=True)
class GroupInt4:
    """Eight numbers in an int32, along the inputs, offset by 8; scales of groups beside them."""

    def components(self, name: str, shape: Sequence[int]) -> Mapping[str, Component]:
        channels, inputs = shape
        return {
            "packed": Component(f"{name}_packed", (channels, inputs // 8), frozenset({"I32"})),
            "scale": Component(f"{name}_scale", (channels, inputs // GROUP)),
        }

    def unused_names(self, name: str) -> Sequence[str]:
        return ()

    def unpack(self, stored: Mapping[str, Array], layout: WeightLayout) -> Mapping[str, Array]:
        nibbles = (stored["packed"][..., None] >> (4 * jnp.arange(8))) & 15
        values = (nibbles - 8).reshape(len(nibbles), -1).astype(jnp.int8)
        return {"values": values, "scales": stored["scale"].astype(jnp.float32)}

    def describe(self, spec: WeightSpec, layout: WeightLayout) -> GroupMatrix:
        groups = prod(spec.sizes_of(spec.summed)) // GROUP
        axes, shape = (" ".join(spec.summed), *spec.kept), (groups, *spec.sizes_of(spec.kept))
        return GroupMatrix(
            layout.array(spec.axes, spec.shape, jnp.int8),
            layout.array(axes, shape, jnp.float32),
            spec,
        )

    def from_tensors(
        self, tensors: Mapping[str, Array], spec: WeightSpec, layout: WeightLayout
    ) -> GroupMatrix:
        return GroupMatrix(tensors["values"], tensors["scales"], spec)


def quantized(weight: NDArray[Any]) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """Return what is stored of a matrix by the ends of its names, and the numbers it means."""
    groups = weight.reshape(len(weight), -1, GROUP)
    scales = (np.abs(groups).max(-1) / 7).astype(np.float32)
    values = np.round(groups / scales[..., None]).astype(np.int32)
    nibbles = (values + 8).reshape(len(weight), -1, 8).astype(np.uint32)
    packed = (nibbles << (4 * np.arange(8, dtype=np.uint32))).sum(-1, dtype=np.uint32)
    stored = {"_packed": packed.view(np.int32), "_scale": scales}
    return stored, (values * scales[..., None]).reshape(weight.shape).astype(np.float32)


def write_both(quantized_to: Path, plain_to: Path) -> None:
    """Write one model in 4 bits, but for its embedding, and as the numbers these mean."""
    write_checkpoint(quantized_to, CONFIG)
    write_checkpoint(plain_to, CONFIG)
    four_bits, plain = {}, {}
    for name, value in tensors(CONFIG).items():
        four_bits[name] = plain[name] = value
        if value.ndim == 2 and "embed" not in name:
            stored, plain[name] = quantized(value)
            del four_bits[name]
            four_bits |= {name + end: each for end, each in stored.items()}
    save_file(four_bits, quantized_to / "model.safetensors")
    save_file(plain, plain_to / "model.safetensors")


@pytest.mark.parametrize("num_devices", [1, 2])
def test_a_stored_format_loads_and_multiplies_as_the_numbers_it_means(
    tmp_path: Path, num_devices: int
) -> None:
    write_both(tmp_path / "four", tmp_path / "plain")
    layout = WeightLayout(
        sharding=ShardingPlan(make_mesh(num_devices)),
        method=GroupInt4(),
        exceptions={("embedding",): ARRAYS},
    )
    loaded = load_params(Checkpoint.open(tmp_path / "four"), MODEL, layout)
    planned = abstract_params(MODEL, layout)

    def agree(array: Array, plan: jax.ShapeDtypeStruct) -> bool:
        is_alike = array.shape == plan.shape and array.dtype == plan.dtype
        return bool(is_alike and array.sharding == plan.sharding)

    assert all(jax.tree.leaves(jax.tree.map(agree, loaded, planned)))
    assert isinstance(loaded["layers"][0]["attention"]["qkv"], GroupMatrix)
    plain = load_params(Checkpoint.open(tmp_path / "plain"), MODEL, WeightLayout())
    ids = jnp.arange(12)
    found, expected = (jax.jit(bind(MODEL, params))(ids) for params in (loaded, plain))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_missing_and_misshapen_components_are_named(tmp_path: Path) -> None:
    write_both(tmp_path / "four", tmp_path / "plain")
    file = tmp_path / "four" / "model.safetensors"
    down = tensors(CONFIG)["model.layers.0.mlp.down_proj.weight"]
    save_file({"model.layers.0.mlp.down_proj.weight_packed": down}, file)
    layout = WeightLayout(method=GroupInt4(), exceptions={("embedding",): ARRAYS})
    with pytest.raises(CheckpointError) as caught:
        load_params(Checkpoint.open(tmp_path / "four"), MODEL, layout)
    assert "model.layers.0.mlp.down_proj.weight_scale" in str(caught.value)
    assert "model.layers.0.mlp.down_proj.weight_packed is F32" in str(caught.value)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRankMatrix(Matrix):
    """A matrix, and what each adapter adds to it."""

    base: Any
    down: Any  # float32[adapters, inputs, rank]
    up: Any  # float32[adapters, rank, channels]

    def einsum(self, spec: str, x: Array, rows: Rows, *, dtype: DTypeLike) -> Array:
        product = as_matrix(self.base).einsum(spec, x, rows, dtype=dtype)
        assert rows.adapter_ids is not None
        down, up = self.down[rows.adapter_ids], self.up[rows.adapter_ids]
        return product + jnp.einsum("ti,tir,trc->tc", x, down, up).reshape(product.shape)

    def take(self, indices: Array, rows: Rows) -> Array:
        return as_matrix(self.base).take(indices, rows)

    @property
    def num_weights(self) -> int:
        return as_matrix(self.base).num_weights


def adapters(count: int, inputs: int, channels: int) -> tuple[Array, Array]:
    keys = jax.random.split(jax.random.key(5), 2)
    return (
        0.1 * jax.random.normal(keys[0], (count, inputs, 2)),
        0.1 * jax.random.normal(keys[1], (count, 2, channels)),
    )


def test_each_row_is_multiplied_by_its_adapter() -> None:
    base, (down, up) = jax.random.normal(jax.random.key(1), (6, 4)), adapters(3, 6, 4)
    x, ids = jax.random.normal(jax.random.key(2), (5, 6)), jnp.array([2, 0, 1, 1, 0])
    found = einsum("td,df->tf", x, LowRankMatrix(base, down, up), Rows(adapter_ids=ids))
    merged = base + jnp.einsum("air,arc->aic", down, up)
    np.testing.assert_allclose(found, jnp.einsum("td,tdf->tf", x, merged[ids]), rtol=1e-4)


def test_adapters_reach_every_product_of_a_decoder() -> None:
    params = params_of(init_model(MODEL))
    merged = params_of(init_model(MODEL))
    for layer, alike in zip(params["layers"].values(), merged["layers"].values(), strict=True):
        for block, name in (("attention", "qkv"), ("mlp", "gate_up"), ("mlp", "down")):
            base = layer[block][name]
            down, up = adapters(2, base.shape[0], prod(base.shape[1:]))
            layer[block][name] = LowRankMatrix(base, down, up)
            alike[block][name] = base + (down[1] @ up[1]).reshape(base.shape)
    ids = jnp.arange(7)

    @jax.jit
    def logits(params: Any, rows: Rows) -> Array:
        model = bind(MODEL, params)
        hidden, _ = model.hidden(ids, ids, (None,) * MODEL.num_layers, attend_dense, rows=rows)
        return model.logits(hidden, rows)

    found = logits(params, Rows(adapter_ids=jnp.full(7, 1)))
    np.testing.assert_allclose(found, jax.jit(bind(MODEL, merged))(ids), rtol=1e-4, atol=1e-5)
