"""Logits against Hugging Face transformers, for every family, RoPE variant and switch."""

from pathlib import Path

import jax
import numpy as np
import pytest
from numpy.typing import NDArray

from jaxserve.loading.weights import load_model
from tests.goldens.checkpoints import CASES, POSITIONS, prompt, write_checkpoint

TOLERANCE = 1e-4  # float32, on logits of up to 7
GOLDENS = Path(__file__).parents[1] / "goldens" / "goldens.npz"


@pytest.fixture(scope="module")
def goldens() -> dict[str, NDArray[np.float32]]:
    with np.load(GOLDENS) as found:
        return dict(found)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(
    case: str, goldens: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    model = load_model(write_checkpoint(tmp_path, CASES[case]))
    logits = jax.jit(model)(prompt(CASES[case]))
    np.testing.assert_allclose(logits[np.array(POSITIONS)], goldens[case], rtol=0, atol=TOLERANCE)


def test_every_case_has_a_golden(goldens: dict[str, NDArray[np.float32]]) -> None:
    assert goldens.keys() == CASES.keys()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("variant", ["linear", "dynamic", "llama3", "yarn"])
def test_goldens_tell_rope_variants_apart(
    family: str, variant: str, goldens: dict[str, NDArray[np.float32]]
) -> None:
    apart = np.abs(goldens[f"{family}-{variant}"] - goldens[f"{family}-default"]).max()
    assert apart > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("sliding", "full"),
    [("mistral-sliding", "mistral-full"), ("qwen2-upper-layers-slide", "qwen2-window-unused")],
)
def test_goldens_tell_a_window_from_none(
    sliding: str, full: str, goldens: dict[str, NDArray[np.float32]]
) -> None:
    apart = np.abs(goldens[sliding] - goldens[full])
    beyond = [row for row, position in enumerate(POSITIONS) if position >= 8]
    assert apart[beyond].max(axis=1).min() > 100 * TOLERANCE
