"""The examples of model families: found, loaded and computed as their files say."""

import ast
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

from examples import custom_block, custom_model, logits_processor
from jaxserve import LLM, SamplingParams
from jaxserve.layers.attention import attend_dense
from jaxserve.layers.linear import ALL_ROWS
from jaxserve.loading.weights import load_model
from jaxserve.models import (
    ForwardContext,
    _registered,
    config_from_hf,
    families,
    register_family,
)
from tests.data import checkpoint

D, F, LAYERS, VOCAB = 32, 48, 2, 512
FAMILIES = {"arcee": custom_model.FAMILY, "parallel": custom_block.FAMILY}
SIZES = {
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


CONFIGS = {
    "arcee": {**SIZES, "model_type": "arcee", "hidden_act": "relu2"},
    "parallel": {**SIZES, "model_type": "parallel"},
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Iterator[str]:
    name: str = request.param
    register_family(name, FAMILIES[name])
    yield name
    del _registered[name]


@pytest.fixture
def folder(tmp_path: Path, family: str) -> Path:
    """A checkpoint of random weights, with the names of the family's tensors."""
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
        tensors[f"{prefix}input_layernorm.weight"] = 1 + drawn(D)
        if family == "arcee":
            tensors[f"{prefix}post_attention_layernorm.weight"] = 1 + drawn(D)
        else:
            tensors[f"{prefix}mlp.gate_proj.weight"] = drawn(F, D)
    if family == "parallel":
        del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[family]), "utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((checkpoint("stories260K-hf") / name).read_bytes())
    return tmp_path


CONTEXT = ForwardContext(positions=jnp.arange(5), attend=attend_dense, rows=ALL_ROWS, rope_length=5)


@pytest.mark.parametrize("family", ["arcee"], indirect=True)
def test_the_mlp_is_a_squared_relu_without_a_gate(folder: Path) -> None:
    model = load_model(folder, dtype="float32")
    mlp: Any = model.layers[0].mlp
    x = np.random.default_rng(1).standard_normal((3, D)).astype(np.float32)
    up, down = np.asarray(mlp.up[...]), np.asarray(mlp.down[...])
    expected = np.maximum(x @ up, 0) ** 2 @ down
    np.testing.assert_allclose(mlp(jnp.asarray(x), CONTEXT), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["parallel"], indirect=True)
def test_the_block_adds_attention_and_mlp_of_the_same_input(folder: Path) -> None:
    model = load_model(folder, dtype="float32")
    x = jnp.asarray(np.random.default_rng(1).standard_normal((5, D)), jnp.float32)
    block: Any = model.layers[0]
    inner = x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + 1e-6)
    inner = inner * block.norm.weight[...]
    mixed, _ = block.attention(inner, None, CONTEXT)
    out, _ = block(x, None, CONTEXT)
    np.testing.assert_allclose(out, x + mixed + block.mlp(inner, CONTEXT), atol=1e-5)
    final = np.asarray(model.final_norm(x))
    np.testing.assert_allclose(final.mean(axis=-1), 0, atol=1e-6)
    np.testing.assert_allclose(final.var(axis=-1), 1, atol=1e-4)


def test_the_engine_computes_it_as_the_model_alone(folder: Path) -> None:
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
    module.__dict__["config_from_hf"] = custom_model.FAMILY.config_from_hf
    monkeypatch.setitem(sys.modules, "brought_family", module)
    monkeypatch.syspath_prepend(tmp_path)
    assert "arcee" in families()
    feed_forward: Any = config_from_hf(CONFIGS["arcee"]).layers[0].feed_forward
    assert feed_forward.module is custom_model.SquaredReluMLP


@pytest.mark.parametrize("example", [custom_model, custom_block, logits_processor])
def test_an_example_takes_less_than_forty_lines_and_no_private_name(example: ModuleType) -> None:
    source = inspect.getsource(example)
    lines = source.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(("import", "from")))
    assert len([line for line in lines[first:] if line.strip()]) < 40
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            assert not any(name.startswith("_") for name in names), ast.unparse(node)
