"""Encoders and heads that score labels, against Hugging Face transformers."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from jaxserve.errors import CheckpointError
from jaxserve.layers.attention import attend_dense
from jaxserve.loading.checkpoint import Checkpoint
from jaxserve.loading.weights import load_params
from jaxserve.models import bind, config_from_hf, read_config
from jaxserve.quantization import WeightLayout
from tests.goldens.checkpoints import (
    ENCODER_CASES,
    LABEL_CASES,
    POOLED_CASES,
    encoder_config,
    prompt,
    segments,
    write_checkpoint,
)

TOLERANCE = 1e-4  # float32
GOLDENS = Path(__file__).parents[1] / "goldens" / "pooled.npz"


@pytest.fixture(scope="module")
def goldens() -> dict[str, NDArray[np.float32]]:
    with np.load(GOLDENS) as found:
        return dict(found)


def load(folder: Path, hf: dict[str, Any]) -> Any:
    checkpoint = Checkpoint.open(write_checkpoint(folder, hf))
    config = read_config(hf)
    return bind(config, load_params(checkpoint, config, WeightLayout()))


@pytest.mark.parametrize("case", ENCODER_CASES)
def test_an_encoder_is_that_of_transformers(
    case: str, goldens: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    hf = ENCODER_CASES[case]
    model = load(tmp_path, hf)
    # The tokens of a second text are higher by the vocabulary.
    token_ids = prompt(hf) + hf["vocab_size"] * segments(hf)
    found = jax.jit(model)(token_ids)
    if "id2label" in hf:
        found = model.pooled(found[:1])[0]
    np.testing.assert_allclose(found, goldens[case], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", LABEL_CASES)
def test_a_decoders_scores_of_labels_are_those_of_transformers(
    case: str, goldens: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    hf = LABEL_CASES[case]
    model = load(tmp_path, hf)
    token_ids = jnp.asarray(prompt(hf))
    caches = (None,) * model.config.num_layers
    hidden, _ = model.hidden(token_ids, jnp.arange(len(token_ids)), caches, attend_dense)
    np.testing.assert_allclose(model.pooled(hidden[-1:])[0], goldens[case], rtol=0, atol=TOLERANCE)


def test_every_case_has_a_golden(goldens: dict[str, NDArray[np.float32]]) -> None:
    assert goldens.keys() == POOLED_CASES.keys()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "relu"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("architectures", ["BertForTokenClassification"]),
        ("architectures", ["BertForCausalLM"]),
        ("num_attention_heads", 5),
        ("id2label", {"1": "a"}),
    ],
)
def test_an_encoder_that_would_be_computed_wrongly_is_refused_by_name(
    key: str, value: object
) -> None:
    labels = {"architectures": ["BertForSequenceClassification"]} if key == "id2label" else {}
    with pytest.raises(CheckpointError, match=key.rstrip("s")):
        read_config(encoder_config("bert", **labels, **{key: value}))


def test_an_encoder_is_no_decoder() -> None:
    with pytest.raises(CheckpointError, match="an encoder"):
        config_from_hf(encoder_config("bert"))
