"""The researcher's example runs as it stands, and finds what it says it finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import researcher
from jaxserve.models import config_from_hf, init_model
from tests.data import checkpoint

MODEL = init_model(config_from_hf(researcher.SMALL), seed=0)
TOKENS = jnp.arange(12)


def test_it_runs_on_a_trained_model(capsys: pytest.CaptureFixture[str]) -> None:
    researcher.main([str(checkpoint("stories260K-hf")), "Once upon a time, there was a"])
    out = capsys.readouterr().out
    assert out.startswith("260,032 parameters\n")
    assert "silencing head" in out


def test_it_runs_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    researcher.main([])
    assert capsys.readouterr().out.startswith("189,120 parameters\n")


def test_gradient_norms_of_a_batch_are_those_of_each_sequence() -> None:
    batch = jnp.stack([TOKENS, TOKENS[::-1]])
    norms = researcher.gradient_norms(MODEL, batch)
    np.testing.assert_allclose(norms[1], researcher.gradient_norms(MODEL, batch[1:])[0], rtol=1e-4)


def test_the_lens_after_the_last_layer_is_the_model_itself() -> None:
    lens = researcher.logit_lens(MODEL, TOKENS)
    assert lens.shape == (4, 12)
    np.testing.assert_array_equal(lens[-1], jax.jit(MODEL)(TOKENS).argmax(axis=-1))


def test_silencing_a_head_that_adds_nothing_costs_nothing() -> None:
    # The output projection of layer 1 ignores head 2.
    model = jax.tree.map(lambda leaf: leaf, MODEL)
    attention = model.layers[1].attention
    attention.o[...] = attention.o[...].at[2].set(0)
    rise = researcher.head_importance(model, TOKENS)
    assert rise.shape == (4, 4)
    np.testing.assert_allclose(rise[1, 2], 0, atol=1e-6)
    assert np.abs(rise).max() > 1e-4
