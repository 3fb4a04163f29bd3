"""Axis names map to mesh axes, or raise a clear error."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxserve.errors import ConfigError
from jaxserve.parallel.sharding import RULES, TENSOR, ShardingPlan, make_mesh


def test_heads_ffw_and_vocab_are_cut_and_widths_are_not() -> None:
    plan = ShardingPlan(make_mesh(2))
    heads = plan.spec(("embed", "heads", "head_dim"), (8, 4, 3))
    assert heads == PartitionSpec(None, "tensor", None)
    assert plan.spec(("ffw", "embed"), (6, 8)) == PartitionSpec("tensor", None)
    assert plan.spec(("vocab", "embed"), (10, 8)) == PartitionSpec("tensor", None)


def test_a_word_is_split_over_all_of_its_mesh_axes() -> None:
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("expert", TENSOR))
    plan = ShardingPlan(mesh, (*RULES, ("ffw", ("expert", TENSOR))))
    assert plan.num_shards("ffw") == 4
    assert plan.spec(("embed", "ffw"), (8, 12)) == PartitionSpec(None, ("expert", TENSOR))
    assert plan.spec(("experts", "embed"), (6, 8)) == PartitionSpec("expert", None)


def test_experts_are_whole_with_expert_parallelism_and_the_rest_is_cut_as_before() -> None:
    plan, usual = ShardingPlan(make_mesh(2, expert_parallel=True)), ShardingPlan(make_mesh(2))
    axes, shape = ("experts", "embed", "ffw"), (6, 8, 5)
    assert plan.spec(axes, shape) == plan.places(*axes) == PartitionSpec("expert", None, None)
    assert plan.spec(("embed", "ffw"), (8, 12)) == PartitionSpec(None, "expert")
    for word in ("heads", "kv_heads", "key_heads", "ffw", "vocab"):
        assert plan.num_shards(word) == usual.num_shards(word) == 2
    with pytest.raises(ConfigError, match=r"model's ffw \(5\), got 2"):
        usual.spec(axes, shape)
    with pytest.raises(ConfigError, match=r"model's experts \(5\), got 2"):
        plan.spec(axes, (5, 8, 12))


def test_a_vocabulary_that_does_not_divide_is_replicated() -> None:
    assert ShardingPlan(make_mesh(2)).spec(("vocab", "embed"), (11, 8)) == PartitionSpec(None, None)


@pytest.mark.parametrize("word", ["heads", "kv_heads", "ffw"])
def test_what_cannot_be_cut_evenly_is_refused_with_both_numbers(word: str) -> None:
    with pytest.raises(ConfigError, match=rf"tensor_parallel_size .* {word} \(6\), got 4"):
        ShardingPlan(make_mesh(4)).spec((word,), (6,))


def test_one_device_divides_everything() -> None:
    assert ShardingPlan(make_mesh(1)).spec(("kv_heads",), (7,)) == PartitionSpec(None)


def test_more_devices_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tensor_parallel_size is 3, but only 2 cpu devices"):
        make_mesh(3, devices=jax.devices()[:2])
