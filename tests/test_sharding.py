"""Words become places on the mesh, or a clear refusal."""

import jax
import pytest
from jax.sharding import PartitionSpec

from jaxserve.errors import ConfigError
from jaxserve.parallel.sharding import make_mesh, partition_spec


def test_heads_ffw_and_vocab_are_cut_and_widths_are_not() -> None:
    mesh = make_mesh(2)
    assert partition_spec(("embed", "heads", "head_dim"), (8, 4, 3), mesh) == PartitionSpec(
        None, "tensor", None
    )
    assert partition_spec(("ffw", "embed"), (6, 8), mesh) == PartitionSpec("tensor", None)
    assert partition_spec(("vocab", "embed"), (10, 8), mesh) == PartitionSpec("tensor", None)


def test_a_vocabulary_that_does_not_divide_is_replicated() -> None:
    assert partition_spec(("vocab", "embed"), (11, 8), make_mesh(2)) == PartitionSpec(None, None)


@pytest.mark.parametrize("word", ["heads", "kv_heads", "ffw"])
def test_what_cannot_be_cut_evenly_is_refused_with_both_numbers(word: str) -> None:
    with pytest.raises(ConfigError, match=rf"tensor_parallel_size .* {word} \(6\), got 4"):
        partition_spec((word,), (6,), make_mesh(4))


def test_one_device_divides_everything() -> None:
    assert partition_spec(("kv_heads",), (7,), make_mesh(1)) == PartitionSpec(None)


def test_more_devices_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tensor_parallel_size is 3, but only 2 cpu devices"):
        make_mesh(3, devices=jax.devices()[:2])
