"""The example of a model family: found, loaded and computed as its file says."""

import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from examples import custom_model, logits_processor
from examples.custom_model import FAMILY, Arcee
from jaxserve import LLM, SamplingParams
from jaxserve.loading.weights import load_model
from jaxserve.models import _registered, config_from_hf, families, register_family
from tests.data import checkpoint

D, F, LAYERS, VOCAB = 32, 48, 2, 512
CONFIG = {
    "model_type": "arcee",
    "architectures": ["ArceeForCausalLM"],
    "hidden_act": "relu2",
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of random weights, as Hugging Face's Arcee names them."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)

    tensors = {
        "model.embed_tokens.weight": drawn(VOCAB, D),
        "model.norm.weight": np.ones(D, np.float32),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{prefix}self_attn.{name}.weight"] = drawn(D, D)
        tensors[f"{prefix}mlp.up_proj.weight"] = drawn(F, D)
        tensors[f"{prefix}mlp.down_proj.weight"] = drawn(D, F)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = np.ones(D, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), "utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((checkpoint("stories260K-hf") / name).read_bytes())
    return tmp_path


@pytest.fixture
def registered() -> Iterator[None]:
    register_family("arcee", FAMILY)
    yield
    del _registered["arcee"]


def test_the_mlp_is_a_squared_relu_without_a_gate(folder: Path, registered: None) -> None:
    model = load_model(folder, dtype="float32")
    mlp: Any = model.layers[0].mlp
    x = np.random.default_rng(1).standard_normal((3, D)).astype(np.float32)
    up, down = np.asarray(mlp.up[...]), np.asarray(mlp.down[...])
    expected = np.maximum(x @ up, 0) ** 2 @ down
    np.testing.assert_allclose(mlp(jnp.asarray(x), lambda _name, value: value), expected, atol=1e-5)


def test_the_engine_computes_it_as_the_model_alone(folder: Path, registered: None) -> None:
    llm = LLM(str(folder), max_num_seqs=2, max_num_batched_tokens=16)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    (output,) = llm.generate({"prompt_token_ids": [5, 6, 7]}, params)
    model = load_model(folder, dtype="float32")
    token_ids = [5, 6, 7]
    for _ in range(12):
        token_ids.append(int(model(jnp.asarray(token_ids))[-1].argmax()))
    assert output.outputs[0].token_ids == token_ids[3:]


def test_a_package_brings_a_family_by_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "brought-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[jaxserve.models]\narcee = brought_family\n")
    module = ModuleType("brought_family")
    module.__dict__["config_from_hf"] = FAMILY.config_from_hf
    monkeypatch.setitem(sys.modules, "brought_family", module)
    monkeypatch.syspath_prepend(tmp_path)
    assert "arcee" in families()
    assert config_from_hf(CONFIG).architecture is Arcee


@pytest.mark.parametrize("example", [custom_model, logits_processor])
def test_an_example_of_ones_own_takes_thirty_lines(example: ModuleType) -> None:
    lines = inspect.getsource(example).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(("import", "from")))
    assert len([line for line in lines[first:] if line.strip()]) <= 30
