"""Parameters described before they exist, and drawn where they will live."""

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from jaxserve.models import abstract_params, config_from_hf, random_params, weight_specs
from jaxserve.parallel.sharding import ShardingPlan, make_mesh
from jaxserve.quantization import WeightLayout
from tests.goldens.checkpoints import tensor_shapes, tiny_config

CONFIG = config_from_hf(tiny_config("qwen3"))


def test_description_has_the_shapes_dtype_and_places_of_what_is_drawn() -> None:
    layout = WeightLayout(dtype="bfloat16", sharding=ShardingPlan(make_mesh(2)))
    described = abstract_params(CONFIG, layout)
    drawn = random_params(CONFIG, layout, seed=0)
    same = jax.tree.map(
        lambda a, b: (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding),
        described,
        drawn,
    )
    assert all(jax.tree.leaves(same))


def test_description_counts_what_a_checkpoint_stores() -> None:
    described = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(CONFIG)))
    stored = sum(np.prod(shape) for shape in tensor_shapes(tiny_config("qwen3")).values())
    assert described == stored


def test_every_dimension_has_a_word() -> None:
    specs = weight_specs(CONFIG)
    shapes = flatten_dict(abstract_params(CONFIG))
    assert specs.keys() == shapes.keys()
    assert specs["layers", 0, "attention", "o"].axes == ("heads", "head_dim", "embed")
    assert all(len(spec.axes) == len(shapes[path].shape) for path, spec in specs.items())


def test_random_parameters_do_not_depend_on_the_number_of_devices() -> None:
    one, two = (
        random_params(CONFIG, WeightLayout(sharding=ShardingPlan(make_mesh(n))), seed=3)
        for n in (1, 2)
    )
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_random_parameters_differ_by_seed_and_by_name() -> None:
    first, second = (random_params(CONFIG, seed=seed)["layers"] for seed in (0, 1))
    assert not np.array_equal(first[0]["mlp"]["down"], second[0]["mlp"]["down"])
    gate, up = first[0]["mlp"]["gate_up"].swapaxes(0, 1)
    assert not np.array_equal(gate, up)
    assert not np.array_equal(first[0]["mlp"]["down"], first[1]["mlp"]["down"])
    np.testing.assert_array_equal(first[0]["mlp_norm"]["weight"], np.ones(32))
