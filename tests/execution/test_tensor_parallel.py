"""One model over several devices: how it is cut, and what cannot be cut."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jaxserve.errors import ConfigError
from jaxserve.execution.shapes import GREEDY, StepShape
from jaxserve.models import DecoderConfig
from jaxserve.models.hf_config import with_layers
from jaxserve.models.mamba2 import Mamba2
from tests.execution.programs import (
    PAGES,
    SMALL,
    Case,
    compile_case,
    plan,
    with_attention,
    with_feed_forward,
)

STEP = StepShape(8, 8, PAGES, GREEDY)


def recurrent(*, groups: int, heads: int) -> DecoderConfig:
    """Return the small model with Mamba2 in place of attention."""
    mixer = Mamba2(groups=groups, heads=heads, head_dim=8, state_dim=8, taps=4)
    return with_layers(SMALL, lambda layer: replace(layer, mixer=mixer))


def test_the_tests_have_four_devices() -> None:
    assert len(jax.devices()) == 4


def test_each_device_holds_its_heads_of_every_page() -> None:
    program = compile_case(Case(SMALL, STEP, devices=4))
    for layer in program.cache:
        assert layer.sharding is not None
        pages, kv_heads, planes, offsets, head_dim = layer.sharding.shard_shape(layer.shape)
        assert (pages, kv_heads, planes, offsets, head_dim) == (20_000, 1, 2, 16, 8)
    whole = jnp.dtype(jnp.float32).itemsize * 2 * 20_000 * 4 * 16 * 8
    kept = program.aliased_bytes
    assert whole // 4 <= kept < whole // 4 * 1.01


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (with_attention(SMALL, heads=6), r"heads \(6\)"),
        (with_attention(SMALL, kv_heads=2), r"kv_heads \(2\)"),
        (with_feed_forward(SMALL, ffw=170), r"ffw \(170\)"),
        (recurrent(groups=2, heads=4), r"Mamba groups \(2\)"),
        (recurrent(groups=1, heads=6), r"Mamba heads \(6\)"),
    ],
)
def test_what_does_not_divide_is_named(model: DecoderConfig, found: str) -> None:
    message = rf"tensor_parallel_size must divide the model's {found}, got 4"
    with pytest.raises(ConfigError, match=message):
        compile_case(Case(model, STEP, devices=4))


def test_a_model_without_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one layer of attention"):
        plan(recurrent(groups=1, heads=4))


def test_more_devices_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tensor_parallel_size is 8, but only 4 cpu devices"):
        compile_case(Case(SMALL, STEP, devices=8))


def test_a_vocabulary_that_does_not_divide_is_kept_whole() -> None:
    model = replace(SMALL, vocab_size=510)
    text = compile_case(Case(model, STEP, devices=4)).text
    assert "f32[510,64]" in text
