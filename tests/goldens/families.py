"""Tiny checkpoints of model families, one golden file per family.

`family_logits/<name>.npz` has the shapes of the tensors that transformers saves for each
configuration, and the logits it computes. The values of the tensors are drawn by name, as in
checkpoints.py.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.goldens import checkpoints, family_cases
from tests.goldens.checkpoints import POSITIONS, HfConfig, tensor

FOLDER = Path(__file__).with_name("family_logits")

Shapes = dict[str, tuple[int, ...]]


_MODULES = [
    import_module(f"{family_cases.__name__}.{module.name}")
    for module in sorted(iter_modules(family_cases.__path__), key=lambda module: module.name)
]
# Configurations of each family, by the name of the case.
FAMILIES: dict[str, Mapping[str, HfConfig]] = {
    family: cases for module in _MODULES for family, cases in module.FAMILIES.items()
}
# Length of the prompts of each family.
NUM_TOKENS: dict[str, int] = {
    family: getattr(module, "NUM_TOKENS", checkpoints.NUM_TOKENS)
    for module in _MODULES
    for family in module.FAMILIES
}
CASES = [(family, case) for family, cases in FAMILIES.items() for case in cases]


def positions(family: str) -> list[int]:
    """Return the positions of the prompt whose logits are kept."""
    last = NUM_TOKENS[family] - 1
    # Around the ends of chunks of 64, too.
    chunks = {stop + offset for stop in range(64, last, 64) for offset in (-1, 0, 1, 5)}
    return sorted({*POSITIONS, *chunks, last})


@cache
def golden(family: str) -> dict[str, tuple[Shapes, NDArray[np.float32]]]:
    """Return the shapes of the tensors and the logits of every case of a family."""
    with np.load(FOLDER / f"{family}.npz") as found:
        return {
            name: (json.loads(str(found[f"{name}/shapes"])), found[f"{name}/logits"])
            for name in (key.removesuffix("/logits") for key in found if key.endswith("/logits"))
        }


def write(folder: Path, config: HfConfig, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """Write `config.json` and `model.safetensors` into `folder`, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    tensors = {name: tensor(name, tuple(shape)) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_case(folder: Path, family: str, case: str) -> Path:
    """Write the checkpoint of a case into `folder`, and return it."""
    return write(folder, FAMILIES[family][case], golden(family)[case][0])
