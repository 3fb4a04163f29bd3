"""Write comparison.json: how closely the models agree with the goldens, and the kernels they use.

docs/generate.py makes a table of it. From the root of the project, for all families or those named:

    python -m tests.goldens.compare [FAMILY ...]
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jaxserve.loading.weights import load_model
from jaxserve.models import Decoder
from pallas_kernels import Unsupported, paged_attention
from pallas_kernels.targets import CPU, find_target
from tests.goldens import checkpoints, families

COMPARISON = Path(__file__).with_name("comparison.json")
LOGITS = Path(__file__).with_name("goldens.npz")
# Families with goldens in one file.
FIRST = ("llama", "mistral", "qwen2", "qwen3")
# Sizes of published models that differ from the usual 64 and 128.
_HEAD_DIMS = {
    "gemma2": (256,),
    "gemma3": (256,),
    "gemma3_text": (256,),
    "gemma4": (256, 512),
    "gemma4_text": (256, 512),
    "phi3": (96, 128),
}
_TARGETS = {"CPU": CPU, **{name: find_target(name) for name in ("h200", "b200", "a100", "v6e")}}


def outputs(model: Decoder, family: str) -> NDArray[np.float32]:
    """Return the logits of a family's prompt, or hidden states of models without a head."""
    is_first = family in FIRST
    num_tokens = checkpoints.NUM_TOKENS if is_first else families.NUM_TOKENS[family]
    positions = checkpoints.POSITIONS if is_first else families.positions(family)
    token_ids = checkpoints.prompt({"vocab_size": model.config.vocab_size}, num_tokens=num_tokens)
    found: NDArray[np.float32] = np.asarray(jax.jit(model)(token_ids))
    kept: NDArray[np.float32] = found[np.array(positions)]
    return kept


def compared(family: str) -> Iterator[tuple[Decoder, float]]:
    """Yield the model of each case, and the largest difference of its outputs from the golden."""
    for case, expected in expected_outputs(family).items():
        with tempfile.TemporaryDirectory() as folder:
            model = load_model(_written(Path(folder), family, case))
        yield model, float(np.abs(outputs(model, family) - expected).max())


def expected_outputs(family: str) -> dict[str, NDArray[np.float32]]:
    """Return the golden of every case of a family."""
    if family in families.FAMILIES:
        return {case: found for case, (_, found) in families.golden(family).items()}
    with np.load(LOGITS) as found:
        return {case: found[case] for case in found if case.split("-")[0] == family}


def _written(folder: Path, family: str, case: str) -> Path:
    if family in families.FAMILIES:
        return families.write_case(folder, family, case)
    return checkpoints.write_checkpoint(folder, checkpoints.CASES[case])


def backends(models: list[Decoder], family: str) -> dict[str, list[str]]:
    """Return the attention backends of each target for the family's published sizes of heads."""
    caching = [model.config for model in models if model.config.is_causal]
    mixers = {layer.mixer for config in caching for layer in config.layers}
    found: dict[str, set[str]] = {}
    for mixer in mixers:
        own = mixer.attention(devices=1, page_size=64, dtype="bfloat16", cache_dtype="bfloat16")
        if own is None:
            continue
        for size in (576,) if own.value_dim else _HEAD_DIMS.get(family, (64, 128)):
            value = 512 if own.value_dim else None  # of every published model with latents
            config = replace(own, head_dim=size, value_dim=value)
            for name, target in _TARGETS.items():
                found.setdefault(name, set()).add(_backend(config, target))
    return {name: sorted(found[name]) for name in _TARGETS if name in found}


def _backend(config: Any, target: Any) -> str:
    try:
        return paged_attention.choose(config, target=target).backend
    except Unsupported:
        return "none"


def main(names: list[str]) -> None:
    """Measure families, and keep the other lines of the file."""
    known = json.loads(COMPARISON.read_text("utf-8")) if COMPARISON.exists() else {}
    for family in names or [*FIRST, *families.FAMILIES]:
        pairs = list(compared(family))
        models = [model for model, _ in pairs]
        worst = max(difference for _, difference in pairs)
        known[family] = {"difference": f"{worst:.0e}", "attention": backends(models, family)}
        print(family, known[family])
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(known[key])}" for key in sorted(known))
        COMPARISON.write_text(f"{{\n{lines}\n}}\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
