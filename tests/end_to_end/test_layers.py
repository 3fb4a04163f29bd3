"""A family whose layers differ in every field of their descriptions, from checkpoint to text."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxserve import LLM, SamplingParams
from jaxserve.loading.weights import load_model
from jaxserve.models import (
    DecoderConfig,
    DecoderFamily,
    _registered,
    read_config,
    register_family,
)
from jaxserve.models.params import weight_specs
from tests.data import checkpoint

HF_CONFIG = {
    "model_type": "sandwich",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True, kw_only=True)
class Sandwich(DecoderFamily):
    """Norms before and after; a window with sinks, a soft cap, and a layer without positions."""

    def config_from_hf(self, hf: Mapping[str, object]) -> DecoderConfig:
        """Replace what `config.json` has no keys for."""
        config = super().config_from_hf(hf)
        attention: list[dict[str, Any]] = [
            {"sliding_window": 4, "sinks": True},
            {"soft_cap": 0.5, "scale": 0.4},
            {"rope": None},
        ]
        layers = tuple(
            replace(
                layer, mixer=changed(layer.mixer, fields), post_norm=True, residual_multiplier=0.7
            )
            for layer, fields in zip(config.layers, attention, strict=True)
        )
        return replace(
            config,
            layers=layers,
            embedding_multiplier=3.0,
            logit_multiplier=0.5,
            logit_soft_cap=4.0,
        )


def changed(part: Any, fields: dict[str, Any]) -> Any:
    return replace(part, **fields)


FAMILY = Sandwich(
    tensors={
        "attention.sinks": [("self_attn.sinks", "heads")],
        "attention_post_norm.weight": [("post_self_attn_layernorm.weight", "embed")],
        "mlp_post_norm.weight": [("post_mlp_layernorm.weight", "embed")],
    }
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A checkpoint of the family, of random weights."""
    register_family("sandwich", FAMILY)
    rng = np.random.default_rng(0)
    config = FAMILY.config_from_hf(HF_CONFIG)
    stored = {}
    for path, tensors in FAMILY.hf_tensors(config).items():
        for tensor in tensors:
            sizes = tensor.sizes(weight_specs(config)[path])
            shape = [prod(sizes[word] for word in dim) for dim in tensor.dims]
            values = rng.standard_normal(shape, np.float32)
            stored[tensor.name] = values * shape[-1] ** -0.5 if len(shape) > 1 else 1 + values / 4
    save_file(stored, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(HF_CONFIG), "utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((checkpoint("stories260K-hf") / name).read_bytes())
    yield tmp_path
    del _registered["sandwich"]


@pytest.mark.parametrize("devices", [1, 2])
def test_the_engine_computes_every_kind_of_layer_as_the_model_alone(
    folder: Path, devices: int
) -> None:
    llm = LLM(str(folder), max_num_seqs=2, max_num_batched_tokens=8, tensor_parallel_size=devices)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    prompts = [[5, 6, 7], list(range(20, 33))]
    outputs = llm.generate(prompts, params)
    model = load_model(folder, dtype="float32")
    for prompt, output in zip(prompts, outputs, strict=True):
        token_ids = list(prompt)
        for _ in range(12):
            token_ids.append(int(model(jnp.asarray(token_ids))[-1].argmax()))
        assert output.outputs[0].token_ids == token_ids[len(prompt) :]


@pytest.mark.parametrize(
    "fields",
    [
        {"sinks": False},
        {"sliding_window": None},
        {"soft_cap": None},
        {"rope": None},
        {"scale": 0.1},
    ],
)
def test_every_field_of_a_mixer_changes_the_logits(folder: Path, fields: dict[str, Any]) -> None:
    model = load_model(folder, dtype="float32")
    token_ids = jnp.arange(10, 25)
    before = model(token_ids)
    for layer in model.layers:
        attention: Any = layer.attention
        attention.mixer = changed(attention.mixer, fields)
        attention.sinks = attention.sinks if attention.mixer.sinks else None
    assert jnp.abs(model(token_ids) - before).max() > 1e-3


def test_multipliers_and_the_soft_cap_scale_what_their_names_say(folder: Path) -> None:
    model = load_model(folder, dtype="float32")
    token_ids = jnp.arange(10, 25)
    logits = model(token_ids)
    model.config = replace(model.config, logit_multiplier=1.0, logit_soft_cap=None)
    plain = model(token_ids)
    np.testing.assert_allclose(logits, 4 * np.tanh(plain / 8), atol=1e-5)
    # A norm follows, so its scale sets the scale of the layer's output.
    for layer in model.layers:
        block: Any = layer
        block.residual_multiplier = 1.0
        for norm in (block.attention_post_norm, block.mlp_post_norm):
            norm.weight[...] = 0.7 * norm.weight[...]
    np.testing.assert_allclose(model(token_ids), plain, atol=1e-5)


def test_the_configuration_can_be_an_argument_of_jit() -> None:
    register_family("sandwich", FAMILY)
    assert hash(read_config(HF_CONFIG)) == hash(read_config(dict(HF_CONFIG)))
    del _registered["sandwich"]
