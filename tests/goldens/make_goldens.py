"""Make goldens.npz, pooled.npz and scores.json: what transformers has for checkpoints.py's cases.

Needs torch and transformers (made with torch 2.13 and transformers 5.23, float32, CPU); from the
root of the project:

    python -m tests.goldens.make_goldens
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch  # type: ignore[import-not-found]
from numpy.typing import NDArray
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from tests.goldens import checkpoints

GOLDENS = Path(__file__).with_name("goldens.npz")
POOLED_GOLDENS = Path(__file__).with_name("pooled.npz")
SCORES = Path(__file__).with_name("scores.json")


def logits(config: checkpoints.HfConfig) -> NDArray[np.float32]:
    """Return float32[POSITIONS, vocab] of the case's prompt, through transformers' own loader."""
    with tempfile.TemporaryDirectory() as folder:
        model, report = AutoModelForCausalLM.from_pretrained(
            checkpoints.write_checkpoint(Path(folder), config),
            attn_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
        )
    faults = {kind: keys for kind, keys in report.items() if keys}
    if faults:
        raise SystemExit(f"transformers reads other tensors than checkpoints.py writes: {faults}")
    token_ids = torch.from_numpy(checkpoints.prompt(config).astype(np.int64))[None]
    with torch.no_grad():
        found: NDArray[np.float32] = model(token_ids, use_cache=False).logits[0].numpy()
    return found[list(checkpoints.POSITIONS)]


def pooled(config: checkpoints.HfConfig) -> NDArray[np.float32]:
    """Return the hidden states of the case's prompt, or the scores of its labels."""
    kind = AutoModelForSequenceClassification if "id2label" in config else AutoModel
    with tempfile.TemporaryDirectory() as folder:
        model = kind.from_pretrained(
            checkpoints.write_checkpoint(Path(folder), config),
            attn_implementation="eager",
            dtype=torch.float32,
        ).eval()
    inputs = {"input_ids": torch.from_numpy(checkpoints.prompt(config).astype(np.int64))[None]}
    if config.get("type_vocab_size") == 2:
        types = checkpoints.segments(config).astype(np.int64)
        inputs["token_type_ids"] = torch.from_numpy(types)[None]
    with torch.no_grad():
        output = model(**inputs)
    states = output.logits if "id2label" in config else output.last_hidden_state
    found: NDArray[np.float32] = states[0].numpy()
    return found


def scores(config: checkpoints.HfConfig) -> list[float]:
    """Return how relevant a cross-encoder finds each of the documents, tokenizer and all."""
    with tempfile.TemporaryDirectory() as name:
        folder = checkpoints.write_pair_tokenizer(
            checkpoints.write_checkpoint(Path(name), config), config
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        ).eval()
    queries = [checkpoints.QUERY] * len(checkpoints.DOCUMENTS)
    pairs = tokenizer(queries, list(checkpoints.DOCUMENTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        found: list[float] = torch.sigmoid(model(**pairs).logits[:, 0]).tolist()
    return found


def main() -> None:
    """Write the logits of all cases, what those that pool come to, and scores of texts."""
    torch.set_num_threads(1)
    goldens = {name: logits(config) for name, config in checkpoints.CASES.items()}
    pooled_goldens = {name: pooled(config) for name, config in checkpoints.POOLED_CASES.items()}
    found = {name: scores(config) for name, config in checkpoints.CROSS_ENCODERS.items()}
    SCORES.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    np.savez_compressed(POOLED_GOLDENS, allow_pickle=False, **pooled_goldens)
    np.savez_compressed(GOLDENS, allow_pickle=False, **goldens)
    largest = max(float(np.abs(golden).max()) for golden in goldens.values())
    print(f"{len(goldens)} cases, {GOLDENS.stat().st_size} bytes, largest logit {largest:.1f}")


if __name__ == "__main__":
    main()
