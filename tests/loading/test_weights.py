"""Tensors arrive on their devices whole, in our layout, one at a time; or all faults are named."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from jaxserve.errors import CheckpointError, ConfigError
from jaxserve.loading.checkpoint import Checkpoint
from jaxserve.loading.weights import load_model, load_params
from jaxserve.models import abstract_params, bind, config_from_hf, read_config
from jaxserve.parallel.sharding import ShardingPlan, make_mesh
from jaxserve.quantization import WeightLayout
from tests.goldens.checkpoints import (
    ENCODER_CASES,
    HfConfig,
    tensors,
    tiny_config,
    write_checkpoint,
)

CONFIG = tiny_config("qwen3")
MODEL = config_from_hf(CONFIG)
FLOAT32 = WeightLayout(dtype="float32")


def write(folder: Path, stored: Mapping[str, NDArray[Any]], config: HfConfig = CONFIG) -> Path:
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    save_file(dict(stored), folder / "model.safetensors")
    return folder


def faults(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_params(Checkpoint.open(folder), MODEL, FLOAT32)
    return str(caught.value)


def test_projections_are_turned_into_axes_by_meaning(tmp_path: Path) -> None:
    params = load_params(Checkpoint.open(write_checkpoint(tmp_path, CONFIG)), MODEL, FLOAT32)
    stored = {
        name.removeprefix("model.layers.1."): value for name, value in tensors(CONFIG).items()
    }
    layer = params["layers"][1]
    x = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    qkv = np.einsum("td,dgpk->tgpk", x, layer["attention"]["qkv"])
    q = qkv[:, :, :-2].reshape(5, 4, 16)
    for found, name in ((q, "q"), (qkv[:, :, -2], "k"), (qkv[:, :, -1], "v")):
        expected = x @ stored[f"self_attn.{name}_proj.weight"].T
        np.testing.assert_allclose(found.reshape(5, -1), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        np.einsum("thk,hkd->td", q, layer["attention"]["o"]),
        q.reshape(5, 64) @ stored["self_attn.o_proj.weight"].T,
        rtol=1e-4,
        atol=1e-4,
    )
    for i, name in enumerate(("gate", "up")):
        part = layer["mlp"]["gate_up"][:, i]
        np.testing.assert_array_equal(part, stored[f"mlp.{name}_proj.weight"].T)
    np.testing.assert_array_equal(layer["mlp"]["down"], stored["mlp.down_proj.weight"].T)
    np.testing.assert_array_equal(
        layer["attention"]["k_norm"]["weight"], stored["self_attn.k_norm.weight"]
    )


@pytest.mark.parametrize("num_devices", [1, 2])
def test_a_mesh_holds_the_same_values_where_the_plan_says(tmp_path: Path, num_devices: int) -> None:
    checkpoint, mesh = Checkpoint.open(write_checkpoint(tmp_path, CONFIG)), make_mesh(num_devices)
    placed = load_params(checkpoint, MODEL, WeightLayout(sharding=ShardingPlan(mesh)))
    alone = load_params(checkpoint, MODEL, FLOAT32)
    jax.tree.map(np.testing.assert_array_equal, placed, alone)
    planned = abstract_params(MODEL, WeightLayout(sharding=ShardingPlan(mesh)))
    places = jax.tree.map(lambda array, plan: array.sharding == plan.sharding, placed, planned)
    assert all(jax.tree.leaves(places))


def test_a_model_on_a_mesh_computes_what_it_computes_on_one_device(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, CONFIG))
    on_one, on_two = (
        jax.jit(
            bind(
                MODEL,
                load_params(checkpoint, MODEL, WeightLayout(sharding=ShardingPlan(make_mesh(n)))),
            )
        )
        for n in (1, 2)
    )
    np.testing.assert_allclose(on_two(jnp.arange(9)), on_one(jnp.arange(9)), atol=1e-5)


def test_heads_that_the_mesh_cannot_share_are_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, CONFIG))
    with pytest.raises(ConfigError, match=r"kv_heads \(2\), got 4"):
        load_params(checkpoint, MODEL, WeightLayout(sharding=ShardingPlan(make_mesh(4))))


def test_shards_of_a_checkpoint_load_as_the_single_file_does(tmp_path: Path) -> None:
    single, sharded = tmp_path / "single", tmp_path / "sharded"
    write_checkpoint(single, CONFIG)
    write_checkpoint(sharded, CONFIG)
    (sharded / "model.safetensors").unlink()
    everything = tensors(CONFIG)
    weight_map = {name: f"part-{i % 3}.safetensors" for i, name in enumerate(sorted(everything))}
    for file in set(weight_map.values()):
        part = {name: everything[name] for name, home in weight_map.items() if home == file}
        save_file(part, sharded / file)
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    row = jnp.arange(5)
    np.testing.assert_array_equal(
        jax.jit(load_model(sharded))(row), jax.jit(load_model(single))(row)
    )


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16"])
def test_dtypes_are_cast_as_numpy_casts_them(tmp_path: Path, stored: str, wanted: str) -> None:
    saved = {name: value.astype(jnp.dtype(stored)) for name, value in tensors(CONFIG).items()}
    params = load_params(Checkpoint.open(write(tmp_path, saved)), MODEL, WeightLayout(dtype=wanted))
    embedding = params["embedding"]
    assert embedding.dtype == jnp.dtype(wanted)
    np.testing.assert_array_equal(
        np.asarray(embedding), saved["model.embed_tokens.weight"].astype(jnp.dtype(wanted))
    )


def test_a_model_is_loaded_as_its_config_says(tmp_path: Path) -> None:
    model = load_model(write_checkpoint(tmp_path, CONFIG | {"torch_dtype": "bfloat16"}))
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype("bfloat16")}


def test_all_faults_are_named_in_one_error(tmp_path: Path) -> None:
    stored = dict(tensors(CONFIG))
    del stored["model.norm.weight"]
    del stored["model.layers.2.mlp.up_proj.weight"]
    stored["model.layers.3.mlp.up_proj.weight"] = np.zeros((56, 32), np.float32)
    stored["lm_head.weight"] = stored["lm_head.weight"][:, :-1].copy()
    stored["model.embed_tokens.weight"] = stored["model.embed_tokens.weight"].astype(
        ml_dtypes.float8_e4m3fn
    )
    message = faults(write(tmp_path, stored))
    assert "2 missing: model.layers.2.mlp.up_proj.weight, model.norm.weight" in message
    assert "1 unexpected: model.layers.3.mlp.up_proj.weight" in message
    assert "1 misshapen: lm_head.weight is [96, 31], not [96, 32]" in message
    assert "1 of a dtype other than BF16, F16, F32: model.embed_tokens.weight is F8_E4M3" in message


def test_a_long_list_of_faults_is_cut_short(tmp_path: Path) -> None:
    message = faults(write(tmp_path, {"transformer.wte.weight": np.zeros((4, 4), np.float32)}))
    assert "36 missing: lm_head.weight, " in message
    assert " and 28 more; 1 unexpected: transformer.wte.weight" in message


TIED = CONFIG | {"tie_word_embeddings": True}


def test_old_tables_and_a_head_like_the_embedding_are_redundant(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = tensors(TIED)
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(8, np.float32),
        "model.rotary_emb.inv_freq": np.zeros(8, np.float32),
        "model.layers.0.self_attn.masked_bias": np.zeros(1, np.float32),
        "lm_head.weight": stored["model.embed_tokens.weight"],
    }
    assert load_model(write(tmp_path, stored | extra, TIED)).lm_head is None
    assert not caplog.records


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_head_that_differs_from_the_embedding_is_used_whatever_the_config_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, prefix: str
) -> None:
    stored = tensors(TIED)
    head = stored["model.embed_tokens.weight"].copy()
    head[-1, -1] += 1
    named = {prefix + name: value for name, value in {**stored, "lm_head.weight": head}.items()}
    model = load_model(write(tmp_path, named, TIED))
    assert model.lm_head is not None
    np.testing.assert_array_equal(model.lm_head[...], head.T)
    assert "using the stored head" in caplog.text


def test_a_bias_of_a_tied_head_is_not_ignored(tmp_path: Path) -> None:
    folder = write(tmp_path, {**tensors(TIED), "lm_head.bias": np.ones(96, np.float32)}, TIED)
    assert "1 unexpected: lm_head.bias" in faults(folder)


def test_a_head_that_is_missing_is_blamed_on_what_ties_it(tmp_path: Path) -> None:
    stored = tensors(CONFIG)
    del stored["lm_head.weight"]
    folder = write(tmp_path, stored)
    assert "1 missing: lm_head.weight" in faults(folder)
    assert """--hf-overrides '{"tie_word_embeddings": true}'""" in faults(folder)
    assert load_model(folder, hf_overrides={"tie_word_embeddings": True}).lm_head is None


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: f"language_model.{name}",
        lambda name: f"model.{name}",
        lambda name: name.removeprefix("model."),
        lambda name: name.replace("model.", "model.language_model."),
        lambda name: f"module._orig_mod.{name}",
    ],
)
def test_what_tools_put_before_names_is_seen_through(
    tmp_path: Path, rename: Callable[[str], str]
) -> None:
    stored = {rename(name): value for name, value in tensors(CONFIG).items()}
    params = load_params(Checkpoint.open(write(tmp_path, stored)), MODEL, FLOAT32)
    np.testing.assert_array_equal(params["embedding"], tensors(CONFIG)["model.embed_tokens.weight"])


@pytest.mark.parametrize("case", ["bert", "bert-labels", "roberta", "xlm-roberta-labels"])
def test_an_old_conversion_of_an_encoder_is_the_same_model(tmp_path: Path, case: str) -> None:
    config = ENCODER_CASES[case]
    model = read_config(config)
    newer, older = tmp_path / "newer", tmp_path / "older"
    newer.mkdir()
    older.mkdir()
    stored = dict(tensors(config))
    write(newer, stored, config)
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in stored.items()
    }
    renamed |= {
        "cls.predictions.bias": np.zeros(96, np.float32),
        "embeddings.position_ids": np.zeros((1, 66), np.int64),
    }
    write(older, renamed, config)
    found, expected = (
        load_params(Checkpoint.open(folder), model, FLOAT32) for folder in (older, newer)
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_shards_of_several_dtypes_load_as_one(tmp_path: Path) -> None:
    everything = tensors(CONFIG)
    weight_map = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(sorted(everything))}
    for file, dtype in (("part-0.safetensors", np.float32), ("part-1.safetensors", np.float16)):
        part = {n: v.astype(dtype) for n, v in everything.items() if weight_map[n] == file}
        save_file(part, tmp_path / file)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), "utf-8")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    params = load_params(Checkpoint.open(tmp_path), MODEL, FLOAT32)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


_MEASURE = """
import sys, threading, time
from pathlib import Path
import jax
from jaxserve.loading.checkpoint import Checkpoint
from jaxserve.loading.weights import load_params
from jaxserve.models import config_from_hf
from jaxserve.quantization import WeightLayout

def held():  # bytes of anonymous memory: what is mapped from a file is not a copy
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024

checkpoint = Checkpoint.open(sys.argv[1])
config = config_from_hf(checkpoint.hf_config)
jax.block_until_ready(jax.numpy.ones(3) + 1)
before = peak = held()
done = False

def watch():
    global peak
    while not done:
        peak = max(peak, held())
        time.sleep(0.001)

watcher = threading.Thread(target=watch, daemon=True)  # a failure ends the process
watcher.start()
params = load_params(checkpoint, config, WeightLayout(dtype="float32"), progress=False)
done = True
watcher.join()
print(sum(leaf.nbytes for leaf in jax.tree.leaves(params)), peak - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc/self/status")
def test_loading_never_holds_the_model_twice(tmp_path: Path) -> None:
    # Twelve layers of about 10 MB; the largest tensor is a fortieth of the whole.
    config = tiny_config(
        "llama", hidden_size=512, intermediate_size=1408, head_dim=64, num_attention_heads=8,
        num_key_value_heads=8, num_hidden_layers=12, vocab_size=512,
    )  # fmt: skip
    folder = write_checkpoint(tmp_path, config)
    run = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(folder)], capture_output=True, text=True, check=True
    )
    num_bytes, peak = map(int, run.stdout.split())
    assert num_bytes > 100e6
    assert peak < 1.3 * num_bytes
