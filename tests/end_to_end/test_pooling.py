"""Vectors of the whole engine, offline: those of transformers, however prompts are batched."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from jaxserve import LLM, PoolingParams
from jaxserve.errors import CheckpointError, ConfigError, ContextLengthError, InvalidRequestError
from jaxserve.loading.weights import load_model
from tests.goldens.checkpoints import (
    MODERNBERT_CASES,
    POOLED_CASES,
    encoder_config,
    prompt,
    segments,
    tensor,
    tiny_config,
    write_checkpoint,
)
from tests.goldens.families import write_case
from tests.server.world import write_tokenizer

type Floats = NDArray[np.float32]

GOLDENS = Path(__file__).parents[1] / "goldens" / "pooled.npz"
SMALL: dict[str, Any] = {"max_num_seqs": 4, "max_num_batched_tokens": 128, "warm_up": "none"}


def folder(path: Path, hf: dict[str, Any], **files: Any) -> str:
    write_tokenizer(write_checkpoint(path, hf))
    for name, value in files.items():
        file = path / name.replace("__", "/")
        file.parent.mkdir(exist_ok=True)
        file.with_suffix(".json").write_text(json.dumps(value), "utf-8")
    return str(path)


def made(path: Path, case: str) -> LLM:
    return LLM(folder(path, POOLED_CASES[case]), **SMALL)


def golden(case: str) -> Floats:
    with np.load(GOLDENS) as found:
        states: Floats = found[case]
        return states


def unit(vector: Floats) -> Floats:
    return vector / np.linalg.norm(vector)


def ids_of(case: str) -> list[int]:
    hf = POOLED_CASES[case]
    ids: list[int] = (prompt(hf) + hf["vocab_size"] * segments(hf)).tolist()
    return ids


@pytest.mark.parametrize("case", ["bert", "xlm-roberta"])
def test_an_encoder_embeds_by_its_first_token_whatever_shares_the_step(
    case: str, tmp_path: Path
) -> None:
    llm = made(tmp_path, case)
    ids = ids_of(case)
    found = llm.embed([[5, 6], ids, [7], ids[:9], ids], use_tqdm=False)
    for output in (found[1], found[4]):
        np.testing.assert_allclose(output.outputs.embedding, unit(golden(case)[0]), atol=1e-5)
        assert output.prompt_token_ids == ids


@pytest.mark.parametrize("case", ["bert-labels", "llama-labels", *MODERNBERT_CASES])
def test_labels_have_transformers_probabilities(case: str, tmp_path: Path) -> None:
    llm = made(tmp_path, case)
    grown = np.exp(golden(case))
    (found,) = llm.classify([ids_of(case)], use_tqdm=False)
    np.testing.assert_allclose(found.outputs.probs, grown / grown.sum(), atol=1e-5)
    (raw,) = llm.encode(ids_of(case), PoolingParams(use_activation=False), use_tqdm=False)
    np.testing.assert_allclose(raw.outputs.data, golden(case), atol=1e-4)


def test_sentence_transformers_files_say_how_to_pool(tmp_path: Path) -> None:
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.models.Pooling",
        },
    ]
    pooling = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    llm = LLM(
        folder(
            tmp_path,
            POOLED_CASES["bert"],
            modules=modules,
            **{"1_Pooling__config": pooling, "sentence_bert_config": {"max_seq_length": 50}},
        ),
        **SMALL,
    )
    (found,) = llm.embed([ids_of("bert")], use_tqdm=False)
    np.testing.assert_allclose(found.outputs.embedding, golden("bert").mean(0), atol=1e-5)
    with pytest.raises(InvalidRequestError, match="50"):
        llm.embed([[5] * 51], use_tqdm=False)
    with pytest.raises(ContextLengthError) as caught:
        llm.embed([[5], [5] * 51], use_tqdm=False)
    assert caught.value.__notes__ == ["in prompt 1 of 2, counted from 0"]
    # It could not be started to generate either, so nobody is told to.
    with pytest.raises(InvalidRequestError, match=r"generates no text$"):
        llm.generate([[5]], use_tqdm=False)


def test_an_embedding_gemma_projects_the_mean_of_its_texts(tmp_path: Path) -> None:
    """Windows on both sides, and two Dense modules whose weights are in folders of their own."""
    write_tokenizer(write_case(tmp_path, "gemma3_text", "both ways"))
    kinds = ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
    modules = [
        {"path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    matrices = [tensor("2_Dense", (48, 32)), tensor("3_Dense", (20, 48))]
    for name, value in {
        "modules": modules,
        "1_Pooling/config": {"pooling_mode": "mean"},
        **{
            f"{i}_Dense/config": {
                "in_features": each.shape[1],
                "out_features": each.shape[0],
                "bias": False,
                "activation_function": "torch.nn.modules.linear.Identity",
            }
            for i, each in enumerate(matrices, 2)
        },
    }.items():
        file = tmp_path / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(value), "utf-8")
    for i, each in enumerate(matrices, 2):
        save_file({"linear.weight": each}, tmp_path / f"{i}_Dense" / "model.safetensors")
    prompts = [[5, 6, 7], list(range(10, 50)), [8] * 20]
    found = LLM(str(tmp_path), max_model_len=64, **SMALL).embed(prompts, use_tqdm=False)
    model = load_model(tmp_path)
    for ids, output in zip(prompts, found, strict=True):
        mean: Floats = np.asarray(model(jnp.array(ids)), np.float32).mean(axis=0)
        projected: Floats = (matrices[1] @ matrices[0] @ mean).astype(np.float32)
        np.testing.assert_allclose(output.outputs.embedding, unit(projected), atol=1e-5)


@pytest.mark.parametrize("kind", ["LAST", "MEAN", "CLS"])
def test_a_decoder_pools_the_same_in_one_piece_and_in_many(kind: str, tmp_path: Path) -> None:
    name = folder(tmp_path, tiny_config("qwen3"))
    ids = prompt(tiny_config("qwen3")).tolist()
    found = []
    for tokens in (64, 16):
        llm = LLM(
            name,
            runner="pooling",
            pooler_config={"pooling_type": kind},
            **{**SMALL, "max_num_batched_tokens": tokens},
        )
        outputs = llm.embed([ids, ids[:30], ids], use_tqdm=False)
        found.append([output.outputs.embedding for output in outputs])
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    np.testing.assert_allclose(found[0][0], found[0][2], atol=1e-5)


def test_a_prompt_beyond_the_context_is_embedded_in_chunks(tmp_path: Path) -> None:
    name = folder(tmp_path, encoder_config("bert"))
    splits = {"pooling_type": "MEAN", "enable_chunked_processing": True, "max_embed_len": 120}
    llm = LLM(name, pooler_config=splits, **{**SMALL, "max_model_len": 50})
    ids = [5 + index for index in range(60)]
    long, *parts = llm.embed([ids, ids[:50], ids[50:]], use_tqdm=False)
    vectors = [np.array(part.outputs.embedding) for part in parts]
    mean = 50 * vectors[0] + 10 * vectors[1]
    np.testing.assert_allclose(long.outputs.embedding, mean / np.linalg.norm(mean), atol=1e-5)
    assert long.prompt_token_ids == ids
    with pytest.raises(ContextLengthError, match="120"):
        llm.embed([[5] * 121], use_tqdm=False)


def test_texts_are_scored_by_the_cosine_of_their_embeddings(tmp_path: Path) -> None:
    llm = LLM(folder(tmp_path, tiny_config("llama", vocab_size=320)), runner="pooling", **SMALL)
    texts = ["once upon a time", "the lazy dog"]
    a, b = (np.array(o.outputs.embedding) for o in llm.embed(texts, use_tqdm=False))
    scores = [o.outputs.score for o in llm.score(texts[0], texts, use_tqdm=False)]
    np.testing.assert_allclose(scores, [1.0, a @ b], atol=1e-5)
    with pytest.raises(InvalidRequestError, match="started with runner=generate"):
        llm.generate(texts, use_tqdm=False)


def test_a_model_that_generates_does_not_embed(tmp_path: Path) -> None:
    llm = LLM(folder(tmp_path, tiny_config("llama")), **SMALL)
    with pytest.raises(InvalidRequestError, match="runner=pooling"):
        llm.embed("a")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"runner": "generate"}, "runner"),
        ({"convert": "classify"}, "convert"),
        ({"pooler_config": {"pooling_type": "MAX"}}, "pooling_type"),
        ({"pooler_config": {"pool": "MEAN"}}, "pool"),
        ({"pooler_config": {"enable_chunked_processing": 1}}, "enable_chunked_processing"),
        ({"pooler_config": {"max_embed_len": 8}}, "max_embed_len.*needs"),
        ({"pooler_config": {"max_embed_len": 0}}, "max_embed_len.*at least 1"),
        ({"max_num_batched_tokens": 32}, "max_num_batched_tokens"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    name = folder(tmp_path, encoder_config("bert"))
    with pytest.raises(ConfigError, match=said):
        LLM(name, **{**SMALL, **options})


def test_modules_that_are_not_supported_are_named(tmp_path: Path) -> None:
    modules = [{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]
    with pytest.raises(CheckpointError, match="Dense"):
        LLM(folder(tmp_path, encoder_config("bert"), modules=modules), **SMALL)
