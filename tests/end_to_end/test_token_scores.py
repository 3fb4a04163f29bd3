"""Rerankers whose score is the logit of one token, or the difference of two, as in transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from jaxserve import LLM, PoolingParams
from jaxserve.config.engine import EngineOptions
from jaxserve.errors import CheckpointError
from jaxserve.planning.planner import plan_engine
from tests.goldens.checkpoints import CASES, HfConfig, prompt, write_checkpoint
from tests.server.world import write_tokenizer

GOLDENS = Path(__file__).parents[1] / "goldens" / "goldens.npz"
SMALL: dict[str, Any] = {"max_num_seqs": 4, "max_num_batched_tokens": 128, "warm_up": "none"}
# Tokens of the test's tokenizer, which are in the vocabulary of every case.
NO, YES = "A", "B"
OVERRIDES: HfConfig = {
    "architectures": ["Qwen3ForSequenceClassification"],
    "classifier_from_token": [NO, YES],
    "is_original_qwen3_reranker": True,
}


def folder(path: Path, case: str = "qwen3-default", **files: Any) -> str:
    write_tokenizer(write_checkpoint(path, CASES[case]))
    for name, value in files.items():
        file = path / f"{name.replace('__', '/')}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(value), "utf-8")
    return str(path)


def last_logits(case: str) -> NDArray[np.float32]:
    """The logits of transformers after the prompt of a case."""
    with np.load(GOLDENS) as found:
        logits: NDArray[np.float32] = found[case][-1]
        return logits


def id_of(path: str, token: str) -> int:
    vocabulary = json.loads((Path(path) / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    found: int = vocabulary[token]
    return found


def scores(llm: LLM, case: str, *, use_activation: bool = True) -> NDArray[np.float32]:
    params = PoolingParams(use_activation=use_activation)
    (output,) = llm.encode([prompt(CASES[case]).tolist()], params, use_tqdm=False)
    return output.outputs.data


@pytest.mark.parametrize("case", ["qwen3-default", "qwen3-tied"])
def test_the_score_of_a_reranker_is_the_chance_of_yes_over_no(case: str, tmp_path: Path) -> None:
    name = folder(tmp_path, case)
    llm = LLM(name, hf_overrides=OVERRIDES, **SMALL)
    logits = last_logits(case)
    margin = logits[id_of(name, YES)] - logits[id_of(name, NO)]
    np.testing.assert_allclose(scores(llm, case, use_activation=False), [margin], atol=1e-4)
    np.testing.assert_allclose(scores(llm, case), [1 / (1 + np.exp(-margin))], atol=1e-5)
    (classified,) = llm.classify([prompt(CASES[case]).tolist()], use_tqdm=False)
    assert classified.outputs.num_classes == 1


def test_tokens_without_a_contrast_are_labels(tmp_path: Path) -> None:
    name = folder(tmp_path)
    llm = LLM(name, hf_overrides={**OVERRIDES, "is_original_qwen3_reranker": False}, **SMALL)
    wanted = last_logits("qwen3-default")[[id_of(name, NO), id_of(name, YES)]]
    found = scores(llm, "qwen3-default", use_activation=False)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("false_id", [5, None])
def test_a_module_of_sentence_transformers_names_the_tokens_and_its_template_the_pairs(
    false_id: int | None, tmp_path: Path
) -> None:
    modules = [
        {"path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {"path": "1_LogitScore", "type": "sentence_transformers.cross_encoder.modules.LogitScore"},
    ]
    files: dict[str, Any] = {
        "modules": modules,
        "1_LogitScore__config": {"true_token_id": 7, "false_token_id": false_id},
        "config_sentence_transformers": {
            "model_type": "CrossEncoder",
            "activation_fn": "torch.nn.modules.linear.Identity",
        },
        "sentence_bert_config": {
            "modality_config": {"text": {}, "message": {"format": "flat"}},
            "processing_kwargs": {"chat_template": {"add_generation_prompt": True}},
        },
    }
    name = folder(tmp_path, **files)
    pooling = plan_engine(EngineOptions(model=name, **SMALL)).pooling
    assert pooling is not None
    assert pooling.pairs_are_chats
    assert pooling.opens_answer
    llm = LLM(name, **SMALL)
    logits = last_logits("qwen3-default")
    wanted = logits[7] - (0 if false_id is None else logits[false_id])
    np.testing.assert_allclose(scores(llm, "qwen3-default"), [wanted], atol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"classifier_from_token": ["A"]}, r"classifier_from_token.*\[no, yes\]"),
        ({"classifier_from_token": "A"}, "classifier_from_token.*lists of strings"),
        ({"classifier_from_token": ["A", "yes indeed"]}, "yes indeed.*not a token"),
        ({"classifier_from_token": ["A", "<|im_end|>"], "vocab_size": 2}, "vocab_size"),
        ({"classifier_from_token": None}, "is_original_qwen3_reranker.*needs"),
    ],
)
def test_settings_that_cannot_score_are_refused_by_name(
    overrides: HfConfig, said: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=said):
        LLM(folder(tmp_path), hf_overrides={**OVERRIDES, **overrides}, **SMALL)
