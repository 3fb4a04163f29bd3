"""Products with codes and scales are those with the numbers they stand for, tile by tile."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.errors import ConfigError
from jaxserve.layers.linear import einsum, grouped
from jaxserve.parallel.sharding import ShardingPlan, make_mesh
from jaxserve.quantization import ALL_ROWS, WeightLayout, WeightSpec
from jaxserve.quantization.grouped import GroupedMatrix, Groups
from jaxserve.quantization.grouped_method import GroupedMethod

COLUMN = WeightSpec(("embed", "gate_up", "ffw"), (256, 2, 64), ("embed",))
ROW = WeightSpec(("heads", "head_dim", "embed"), (8, 32, 48), ("heads", "head_dim"))
TABLE = WeightSpec(("vocab", "embed"), (48, 256), ("embed",))
STACK = WeightSpec(("experts", "embed", "ffw"), (3, 256, 64), ("embed",), ("experts",))
GROUPS = {
    "int4": Groups("int4", 32, "bfloat16"),
    "uint4": Groups("uint4", 32, "float16", has_zeros=True),
    "nvfp4": Groups("fp4", 16, "e4m3", outer="multiply"),
    "mxfp4": Groups("fp4", 32, "e8m0"),
    "nf4": Groups("nf4", 64, "float32"),
    "int8": Groups("int8", None, "float32"),
    "uint8": Groups("uint8", 64, "float16", has_zeros=True),
    "e4m3": Groups("e4m3", None, "bfloat16"),
}


def matrix(groups: Groups, spec: WeightSpec, layout: WeightLayout | None = None) -> GroupedMatrix:
    weight = jax.random.normal(jax.random.key(0), spec.shape)
    return GroupedMethod(groups=groups).from_tensors(
        {"weight": weight}, spec, layout or WeightLayout()
    )


def rows(count: int = 5) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (count, 256))


@pytest.mark.parametrize("name", GROUPS)
def test_products_are_those_with_the_dequantized_matrix(name: str) -> None:
    packed = matrix(GROUPS[name], COLUMN)
    numbers = packed.dequantized()
    weight = jax.random.normal(jax.random.key(0), COLUMN.shape)
    assert jnp.max(jnp.abs(numbers - weight)) < 0.5
    found = jax.jit(lambda x: einsum("td,dpf->tpf", x, packed, ALL_ROWS))(rows())
    np.testing.assert_allclose(found, jnp.einsum("td,dpf->tpf", rows(), numbers), atol=1e-4)


def test_every_number_of_e4m3_is_converted_exactly() -> None:
    codes = jax.lax.bitcast_convert_type(jnp.arange(256, dtype=jnp.uint8), jnp.float8_e4m3fn)
    packed = GroupedMatrix(
        codes[:, None], jnp.ones((1, 1)), None, None, None, None, GROUPS["e4m3"], "float32"
    )
    found = jax.jit(GroupedMatrix.dequantized)(packed)[:, 0]
    np.testing.assert_array_equal(found, np.asarray(codes).astype(np.float32))


def test_tables_give_rows_and_logits() -> None:
    table = matrix(GROUPS["int4"], TABLE)
    numbers = table.dequantized().T
    np.testing.assert_array_equal(
        table.take(jnp.array([3, 47, -1, 48]), ALL_ROWS)[:2], numbers[jnp.array([3, 47])]
    )
    assert jnp.isnan(table.take(jnp.array([-1, 48]), ALL_ROWS)).all()
    found = einsum("td,vd->tv", rows(), table, ALL_ROWS)
    np.testing.assert_allclose(found, rows() @ numbers.T, atol=1e-4)


def test_experts_multiply_their_own_rows() -> None:
    stack = matrix(GROUPS["mxfp4"], STACK)
    found = grouped(rows(), stack, jnp.array([2, 0, 2]))
    numbers = stack.dequantized()
    own = jnp.concatenate([rows()[:2] @ numbers[0], rows()[2:4] @ numbers[2]])
    np.testing.assert_allclose(found, jnp.pad(own, ((0, 1), (0, 0))), atol=1e-4)


@pytest.mark.parametrize("spec", [COLUMN, ROW, STACK], ids=["outputs", "inputs", "experts"])
def test_shards_give_the_product_of_the_whole(spec: WeightSpec) -> None:
    plan = ShardingPlan(make_mesh(2))
    groups = GROUPS["nvfp4"]
    layout = WeightLayout(sharding=plan)
    whole, shards = matrix(groups, spec), matrix(groups, spec, layout)
    described = GroupedMethod(groups=groups).describe(spec, layout)

    def agree(array: Any, plan: Any) -> bool:
        return (array.shape, array.dtype, array.sharding) == (plan.shape, plan.dtype, plan.sharding)

    assert all(jax.tree.leaves(jax.tree.map(agree, shards, described)))
    assert shards.codes.addressable_shards[0].data.size == whole.codes.size // 2
    if spec is STACK:
        sizes = jnp.array([2, 1, 2])
        found, expected = (grouped(rows(), each, sizes) for each in (shards, whole))
    else:
        words = "td,dpf->tpf" if spec is COLUMN else "thk,hkd->td"
        x = rows() if spec is COLUMN else rows().reshape(5, 8, 32)
        product = jax.jit(lambda each: einsum(words, x, each, ALL_ROWS))
        found, expected = product(shards), product(whole)
        assert "all-gather" not in str(product.lower(shards).compile().as_text())
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_groups_must_divide_matrices_and_shards() -> None:
    method = GroupedMethod(groups=GROUPS["nf4"])
    with pytest.raises(ConfigError, match=r"groups of 64 inputs.*200 inputs"):
        method.describe(WeightSpec(("embed", "ffw"), (200, 8), ("embed",)), WeightLayout())
    layout = WeightLayout(sharding=ShardingPlan(make_mesh(2)))
    with pytest.raises(ConfigError, match=r"must divide the 3 groups of 64 inputs.*got 2"):
        method.describe(WeightSpec(("ffw", "embed"), (192, 8), ("ffw",)), layout)
    ordered = GroupedMethod(groups=Groups("int4", 32, "float16", has_order=True))
    with pytest.raises(ConfigError, match="experts"):
        ordered.describe(STACK, WeightLayout())


@pytest.mark.parametrize("num_rows", [1, 256])
def test_no_program_keeps_a_dequantized_copy(num_rows: int) -> None:
    spec = WeightSpec(("embed", "ffw"), (4096, 4096), ("embed",))
    described = GroupedMethod(groups=GROUPS["int4"]).describe(spec, WeightLayout(dtype="bfloat16"))
    x = jax.ShapeDtypeStruct((num_rows, 4096), jnp.bfloat16)
    program = jax.jit(lambda x, weight: einsum("td,df->tf", x, weight, ALL_ROWS))
    memory = program.lower(x, described).compile().memory_analysis()
    assert memory is not None
    copy = 2 * 4096 * 4096
    assert described.num_bytes < 0.3 * copy
    # The rows, their sums in float32 and one tile remain.
    assert memory.temp_size_in_bytes < 0.4 * copy + 12 * num_rows * 4096
