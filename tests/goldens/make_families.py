"""Make family_logits/*.npz: the tensors and logits of transformers for the cases of families.py.

Needs torch and transformers (made with torch 2.13 and transformers 5.19, float32, CPU); from the
root of the project, for all families or those named:

    python -m tests.goldens.make_families [FAMILY ...]
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found]
import transformers
from numpy.typing import NDArray
from safetensors import safe_open

from tests.goldens import families
from tests.goldens.checkpoints import HfConfig, prompt


def model_class(config: HfConfig) -> Any:
    """Return the class of transformers that a configuration names."""
    return getattr(transformers, config["architectures"][0])


def saved_shapes(config: HfConfig) -> families.Shapes:
    """Return name and shape of every tensor of the checkpoint that transformers would save."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), "utf-8")
        model = model_class(config)(transformers.AutoConfig.from_pretrained(folder))
        model.save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", framework="numpy") as opened:
            return {
                name: tuple(opened.get_slice(name).get_shape())
                for name in opened.keys()  # noqa: SIM118  (not a mapping)
            }


def logits(config: HfConfig, shapes: families.Shapes, family: str) -> NDArray[np.float32]:
    """Return the logits of the prompt, through transformers' own loader: float32[positions, vocab].

    Models without a head give hidden states.
    """
    with tempfile.TemporaryDirectory() as folder:
        model, report = model_class(config).from_pretrained(
            families.write(Path(folder), config, shapes),
            attn_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
        )
    faults = {kind: keys for kind, keys in report.items() if keys}
    if faults:
        raise SystemExit(f"transformers reads other tensors than it saves: {faults}")
    asked = prompt(text_of(config), num_tokens=families.NUM_TOKENS[family])
    token_ids = torch.from_numpy(asked.astype(np.int64))[None]
    with torch.no_grad():
        output = model.eval()(token_ids)
    states = output.logits if "logits" in output else output.last_hidden_state
    found: NDArray[np.float32] = states[0].numpy()
    return found[families.positions(family)]


def text_of(config: HfConfig) -> HfConfig:
    """Return the part of a configuration that has the vocabulary."""
    found: HfConfig = config.get("text_config", config)
    return found


def main(names: list[str]) -> None:
    """Write the golden files of families."""
    torch.set_num_threads(1)
    families.FOLDER.mkdir(exist_ok=True)
    for family in names or families.FAMILIES:
        arrays: dict[str, Any] = {}
        largest = 0.0
        for case, config in families.FAMILIES[family].items():
            shapes = saved_shapes(config)
            found = logits(config, shapes, family)
            arrays |= {f"{case}/shapes": np.array(json.dumps(shapes)), f"{case}/logits": found}
            largest = max(largest, float(np.abs(found).max()))
        path = families.FOLDER / f"{family}.npz"
        np.savez_compressed(path, allow_pickle=False, **arrays)
        print(f"{family}: {path.stat().st_size} bytes, largest logit {largest:.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
