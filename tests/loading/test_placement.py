"""Stored tensors are cut, split, permuted, stacked and shared on their way to a parameter."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from numpy.typing import NDArray
from safetensors.numpy import save_file

from jaxserve.loading.checkpoint import Checkpoint
from jaxserve.loading.placement import Joined, Piece
from jaxserve.loading.weights import load_params
from jaxserve.models import (
    Cut,
    DecoderConfig,
    HfTensor,
    Stored,
    config_from_hf,
)
from jaxserve.models import (
    Path as ParamPath,
)
from jaxserve.models.weights import Part, llama_tensors
from jaxserve.parallel.sharding import ShardingPlan, make_mesh
from jaxserve.quantization import ARRAYS, WeightLayout, WeightSpec
from tests.goldens.checkpoints import tensors, tiny_config, write_checkpoint

CONFIG = tiny_config("llama", tie_word_embeddings=False)
LAYOUTS = [WeightLayout(), WeightLayout(sharding=ShardingPlan(make_mesh(2)))]
EXPERTS = WeightLayout(sharding=ShardingPlan(Mesh(np.array(jax.devices()[:2]), ("expert",))))


def placed(
    spec: WeightSpec, parts: list[tuple[HfTensor, NDArray[Any]]], layout: WeightLayout
) -> jax.Array:
    joined = Joined(len(parts))
    for tensor, stored in parts:
        piece = Piece(tensor, spec, ARRAYS, layout)
        (component,) = piece.components.values()
        assert component.shape == stored.shape
        read = piece.read(component, stored.__getitem__)
        joined.add(piece, piece.arrange({"weight": read}))
    assert joined.is_complete
    found = joined.tensors["weight"]
    assert found.sharding == layout.array(spec.axes, spec.shape).sharding or not layout.sharding
    return found


def numbers(*shape: int) -> NDArray[np.float32]:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["one", "two"])
def test_rows_of_each_head_are_cut_out(layout: WeightLayout) -> None:
    # Each of 4 heads has 8 rows: 3 of another tensor, 5 of this one.
    stored = numbers(4 * 8, 6)
    tensor = HfTensor("w", (("heads", "head_dim"), ("embed",)), cut=Cut(3, total=8, outer=1))
    spec = WeightSpec(("embed", "heads", "head_dim"), (6, 4, 5), summed=("embed",))
    expected = stored.reshape(4, 8, 6)[:, 3:].transpose(2, 0, 1)
    np.testing.assert_array_equal(placed(spec, [(tensor, stored)], layout), expected)


def test_pieces_of_an_axis_change_their_order() -> None:
    # Rotary pairs side by side, as GGUF has them, become two halves.
    stored = numbers(4 * 6, 5)
    tensor = HfTensor(
        "w",
        (("heads", "pair", "half"), ("embed",)),
        splits=(("head_dim", (("half", 2), ("pair", 3))),),
    )
    spec = WeightSpec(("embed", "heads", "head_dim"), (5, 4, 6), summed=("embed",))
    expected = stored.reshape(4, 3, 2, 5).transpose(3, 0, 2, 1).reshape(5, 4, 6)
    np.testing.assert_array_equal(placed(spec, [(tensor, stored)], LAYOUTS[0]), expected)


@pytest.mark.parametrize("layout", [*LAYOUTS, EXPERTS], ids=["one", "two", "experts"])
def test_a_tensor_of_each_expert_is_stacked(layout: WeightLayout) -> None:
    spec = WeightSpec(("experts", "embed", "gate_up", "ffw"), (4, 4, 2, 6), summed=("embed",))
    stored = numbers(4, 2, 6, 4)
    parts = [
        (
            HfTensor(
                f"{expert}.{half}",
                (("gate_up", "ffw"), ("embed",)),
                (Part("gate_up", half, 1), Part("experts", expert, 1)),
            ),
            stored[expert, half],
        )
        for expert in range(4)
        for half in range(2)
    ]
    # The axis that is stacked has no dimension of its own in a tensor.
    found = placed(spec, parts, layout)
    np.testing.assert_array_equal(found, stored.transpose(0, 3, 1, 2))


def fused(stored: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return a Llama's tensors as families with fused projections store them."""
    renamed = dict(stored)
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, parts in {
            "self_attn.qkv_proj": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            "mlp.gate_up_proj": ["mlp.gate_proj", "mlp.up_proj"],
        }.items():
            rows = [renamed.pop(f"{prefix}{part}.weight") for part in parts]
            renamed[f"{prefix}{name}.weight"] = np.concatenate(rows)
    renamed["wte.weight"] = renamed.pop("model.embed_tokens.weight")
    del renamed["lm_head.weight"]
    return renamed


class Fused:
    """A family with one tensor for queries, keys and values, whose head reads the embedding's."""

    def config_from_hf(self, hf: Mapping[str, object]) -> DecoderConfig:
        return config_from_hf({**hf, "model_type": "llama"})

    def hf_tensors(self, config: DecoderConfig) -> dict[ParamPath, tuple[HfTensor, ...]]:
        mixer: Any = config.layers[0].mixer
        queries, keys = mixer.heads * mixer.head_dim, mixer.kv_heads * mixer.head_dim
        total, name = queries + 2 * keys, "self_attn.qkv_proj.weight"
        dims = "kv_heads qkv head_dim, embed"
        return llama_tensors(
            config,
            more={
                "attention.qkv": [
                    Stored(name, dims, Cut(start, total)) for start in (0, queries, queries + keys)
                ],
                "mlp.gate_up": [("mlp.gate_up_proj.weight", "gate_up ffw, embed")],
            },
            top={
                "embedding": [("wte.weight", "vocab, embed")],
                "lm_head": [("wte.weight", "vocab, embed")],
            },
        )


@pytest.mark.parametrize("layout", LAYOUTS, ids=["one", "two"])
def test_a_family_reads_fused_and_shared_tensors(
    tmp_path: Path, layout: WeightLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tensors(CONFIG)
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"]
    for folder, content in ((tmp_path / "a", stored), (tmp_path / "b", fused(stored))):
        write_checkpoint(folder, CONFIG)
        save_file(content, folder / "model.safetensors")
    model = config_from_hf(CONFIG)
    expected = load_params(Checkpoint.open(tmp_path / "a"), model, layout)
    monkeypatch.setattr("jaxserve.models._registered", {"llama": Fused()})
    found = load_params(Checkpoint.open(tmp_path / "b"), model, layout)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
