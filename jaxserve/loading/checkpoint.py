"""A checkpoint on disk: its configuration, and where every tensor lies. Nothing is loaded here.

Only safetensors are read. Pickled weights (`*.bin`, `*.pt`) can run code as they are opened.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError, safe_open

from jaxserve.errors import CheckpointError
from jaxserve.loading.generation import GenerationDefaults
from jaxserve.loading.published import published

_CONFIG = "config.json"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One stored tensor: its file, its safetensors dtype ("F32", "BF16", ...), its shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A model folder in Hugging Face's layout. `name` is what the user called it.

    `config` is the file that describes the model. A checkpoint may be that file alone: it can be
    planned and compiled.
    """

    folder: Path
    name: str
    config: str = _CONFIG

    @staticmethod
    def open(
        name: str | Path, *, revision: str | None = None, download_dir: str | Path | None = None
    ) -> "Checkpoint":
        """Find a checkpoint: a local folder, or a hub name, downloaded once and cached.

        A file is a configuration, and so is the name of a published model (`published`).

        revision: branch, tag or commit on the hub. download_dir: the cache to use, by default the
        hub client's own. HF_HUB_OFFLINE keeps to the cache. Raises CheckpointError.
        """
        folder = published().get(str(name), Path(name))
        if folder.is_file():
            return Checkpoint(folder=folder.parent, name=str(name), config=folder.name)
        if not folder.is_dir():
            # Imported here: the hub's client takes most of a second, which a folder needs not.
            from jaxserve.loading.hub import download  # noqa: PLC0415

            folder = download(str(name), revision=revision, cache_dir=download_dir)
        if not (folder / _CONFIG).is_file():
            raise CheckpointError(f"{name} has no config.json: it is not a Hugging Face model")
        return Checkpoint(folder=folder, name=str(name))

    @cached_property
    def hf_config(self) -> Mapping[str, object]:
        """The parsed configuration."""
        return self._json(self.config)

    @cached_property
    def generation(self) -> GenerationDefaults:
        """The sampling defaults of `generation_config.json`."""
        name = "generation_config.json"
        found = self._json(name) if (self.folder / name).is_file() else {}
        return GenerationDefaults.read(found, self.hf_config)

    @property
    def dtype(self) -> str:
        """The dtype the checkpoint asks for: "float32", "bfloat16" or "float16"."""
        asked = self.hf_config.get("dtype") or self.hf_config.get("torch_dtype")
        if asked is None:
            stored = {info.dtype for info in self.tensors.values()}
            return {"BF16": "bfloat16", "F16": "float16"}.get(min(stored), "float32")
        if asked not in _DTYPES:
            raise CheckpointError(
                f"config.json has dtype = {asked!r}; jaxserve supports {', '.join(_DTYPES)}"
            )
        return str(asked)

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name, from the headers of the safetensors files."""
        tensors: dict[str, TensorInfo] = {}
        for file in self._files():
            try:
                with safe_open(file, framework="numpy") as opened:
                    for name in opened.keys():  # noqa: SIM118  (not a mapping)
                        part = opened.get_slice(name)
                        shape = tuple(part.get_shape())
                        tensors[name] = TensorInfo(file, part.get_dtype(), shape)
            except SafetensorError as error:
                raise CheckpointError(f"{file.name} is not a readable safetensors file") from error
        return tensors

    @property
    def num_bytes(self) -> int:
        """Bytes of the files that hold tensors."""
        return sum(file.stat().st_size for file in {info.file for info in self.tensors.values()})

    def _files(self) -> list[Path]:
        if (self.folder / _INDEX).is_file():
            return self._indexed_files()
        if (self.folder / _SINGLE).is_file():
            return [self.folder / _SINGLE]
        pickled = sorted(p.name for p in self.folder.iterdir() if p.suffix in _PICKLED)
        if pickled:
            raise CheckpointError(
                f"{self.name} holds only pickled weights ({', '.join(pickled[:3])}), which can run"
                " code when opened; convert it to safetensors"
            )
        raise CheckpointError(
            f"{self.name} has neither {_SINGLE} nor {_INDEX}: without weights a model can be"
            " planned and compiled, but not run, unless load_format is dummy"
        )

    def _indexed_files(self) -> list[Path]:
        weight_map = self._json(_INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{_INDEX} has no weight_map")
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            # A download must not make us open files elsewhere.
            is_plain = PurePosixPath(name).name == name and "\\" not in name
            if not is_plain or not name.endswith(".safetensors"):
                raise CheckpointError(f"{_INDEX} names {name!r}, not a safetensors file beside it")
        absent = [name for name in names if not (self.folder / name).is_file()]
        if absent:
            raise CheckpointError(f"{self.name} lacks files its index names: {', '.join(absent)}")
        return [self.folder / name for name in names]

    def _json(self, name: str) -> Mapping[str, object]:
        try:
            value = json.loads((self.folder / name).read_text("utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{name} of {self.name} is not JSON") from error
        if not isinstance(value, dict):
            raise CheckpointError(f"{name} of {self.name} is not a JSON object")
        return value
