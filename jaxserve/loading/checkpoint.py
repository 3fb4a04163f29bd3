"""A checkpoint on disk: its configuration, and the file of each tensor. Loads no weights.

Only safetensors files are read, because pickled weights (`*.bin`, `*.pt`) can run code when opened.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError, safe_open

from jaxserve.errors import CheckpointError
from jaxserve.loading.diagnosis import damage, no_weights, wrong_file, wrong_folder
from jaxserve.loading.published import published

logger = logging.getLogger(__name__)

_CONFIG = "config.json"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# Shards of a checkpoint without an index.
_SHARD = re.compile(r"model-([0-9]+)-of-([0-9]+)\.safetensors")
_DTYPES = ("float32", "bfloat16", "float16")
# Files with quantization settings, by the tools that wrote them before they were in config.json.
_SETTINGS_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One stored tensor: its file and name in it, its dtype ("F32", "BF16", ...), its shape."""

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A model folder in Hugging Face's layout.

    name: the name given by the user, for messages. config: name of the configuration file. A
    checkpoint without weights can be planned and compiled. hf_overrides: values that replace those
    of the configuration; objects are merged recursively. left_out: files of the hub repository that
    were not downloaded.
    """

    folder: Path
    name: str
    config: str = _CONFIG
    hf_overrides: Mapping[str, object] = field(default_factory=dict[str, object])
    left_out: tuple[str, ...] = ()

    @staticmethod
    def open(
        name: str | Path,
        *,
        revision: str | None = None,
        download_dir: str | Path | None = None,
        hf_overrides: Mapping[str, object] | None = None,
    ) -> "Checkpoint":
        """Open a local folder, or a model of the hub, which is downloaded and cached.

        name: may also be a configuration file, or the short name of a published model (see
        `published`). revision: branch, tag or commit on the hub. download_dir: the cache folder, by
        default that of the hub client. With HF_HUB_OFFLINE, only the cache is used. hf_overrides:
        see the class. Raises CheckpointError.
        """
        folder = published().get(str(name), Path(name))
        overrides = hf_overrides or {}
        if folder.is_file():
            reason = wrong_file(folder)
            if reason is not None:
                raise CheckpointError(reason)
            return Checkpoint(folder.parent, str(name), folder.name, overrides)
        left_out: tuple[str, ...] = ()
        if not folder.is_dir():
            # Imported here because it takes most of a second, and local folders do not need it.
            from jaxserve.loading import hub  # noqa: PLC0415

            folder = hub.download(str(name), revision=revision, cache_dir=download_dir)
            if not any(folder.glob("*.safetensors")):
                left_out = hub.list_files(str(name), revision=revision)
        if not (folder / _CONFIG).is_file():
            raise CheckpointError(wrong_folder(folder, str(name), left_out=left_out))
        return Checkpoint(folder, str(name), hf_overrides=overrides, left_out=left_out)

    @cached_property
    def hf_config(self) -> Mapping[str, object]:
        """The parsed configuration, with its overrides."""
        found = self._json(self.config)
        if not self.hf_overrides:
            return found
        # Imported here because models import JAX, which the rest of this module does not need.
        from jaxserve.models import with_overrides  # noqa: PLC0415

        return with_overrides(found, self.hf_overrides)

    @cached_property
    def quantization(self) -> Mapping[str, object] | None:
        """The quantization settings: of the configuration, or of a file beside it; None without."""
        configs = [self.hf_config, self.hf_config.get("text_config")]
        for config in configs:
            for key in ("quantization_config", "compression_config"):
                found = config.get(key) if isinstance(config, Mapping) else None
                if not found:
                    continue
                if not isinstance(found, Mapping):
                    raise CheckpointError(
                        f"{self.config} has {key} = {found!r}; expected an object"
                    )
                return found
        for name, method in _SETTINGS_FILES.items():
            if (self.folder / name).is_file():
                return {"quant_method": method, **self._json(name)}
        return None

    @property
    def dtype(self) -> str:
        """The dtype of the checkpoint: "float32", "bfloat16" or "float16"."""
        asked = self.hf_config.get("dtype") or self.hf_config.get("torch_dtype")
        if asked is None:
            stored = {info.dtype for info in self.tensors.values()}
            return {"BF16": "bfloat16", "F16": "float16"}.get(min(stored, default=""), "float32")
        named = str(asked).removeprefix("torch.")
        if named not in _DTYPES:
            raise CheckpointError(
                f"{self.config} has dtype = {asked!r}; jaxserve supports {', '.join(_DTYPES)}."
                """ Choose one of them with --hf-overrides '{"dtype": "float32"}'"""
            )
        return named

    @cached_property
    def has_weights(self) -> bool:
        """Whether the folder has weights to load."""
        return bool(self._files)

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name, from the headers of the safetensors files.

        If several shards contain a tensor, the index decides. Names of tensors of a
        sentence-transformers module begin with its folder.
        """
        if not self._files:
            raise CheckpointError(no_weights(self.folder, self.name, left_out=self.left_out))
        tensors: dict[str, TensorInfo] = {}
        for file in self._files:
            for info in self._headers(file):
                if info.key not in tensors or self._weight_map.get(info.key) == file.name:
                    tensors[info.key] = info
        for file in sorted(self.folder.glob(f"*_Dense/{_SINGLE}")):
            tensors |= {f"{file.parent.name}.{info.key}": info for info in self._headers(file)}
        for name, home in self._weight_map.items():
            if name not in tensors:
                raise CheckpointError(
                    f"{_INDEX} of {self.name} lists {name} in {home}, which does not contain it:"
                    " one of the two is outdated. Download both again"
                )
        return tensors

    def _headers(self, file: Path) -> list[TensorInfo]:
        """Return the tensors of a file."""
        try:
            with safe_open(file, framework="numpy") as opened:
                parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
                return [
                    TensorInfo(file, name, part.get_dtype(), tuple(part.get_shape()))
                    for name, part in parts.items()
                ]
        except SafetensorError as error:
            raise CheckpointError(
                f"{file.name} of {self.name} is not a readable safetensors file: {damage(file)}"
            ) from error

    @property
    def num_bytes(self) -> int:
        """Total size of the files with tensors, in bytes."""
        return sum(file.stat().st_size for file in {info.file for info in self.tensors.values()})

    @cached_property
    def _weight_map(self) -> Mapping[str, str]:
        """The file of each tensor according to the index; empty if no index is used."""
        if not (self.folder / _INDEX).is_file():
            return {}
        is_single = (self.folder / _SINGLE).is_file()
        try:
            weight_map = self._read_index()
        except CheckpointError:
            if not is_single:
                raise
            weight_map = {}
        if is_single and _SINGLE not in weight_map.values():
            # As in transformers. Saving writes one of them, and leaves an older one in place.
            logger.warning(
                "%s has both %s and %s; using the single file and ignoring the index",
                self.name,
                _SINGLE,
                _INDEX,
            )
            return {}
        return weight_map

    @cached_property
    def _files(self) -> list[Path]:
        """The files with weights; empty if there are none."""
        if self._weight_map:
            names = sorted(set(self._weight_map.values()))
            self._check_shards(names, by=f"{_INDEX} names")
            return [self.folder / name for name in names]
        if (self.folder / _SINGLE).is_file():
            return [self.folder / _SINGLE]
        shards = {path.name: _SHARD.fullmatch(path.name) for path in self.folder.iterdir()}
        if totals := {(match[2], len(match[1])) for match in shards.values() if match}:
            total, width = max(totals)
            names = [f"model-{i:0{width}}-of-{total}.safetensors" for i in range(1, int(total) + 1)]
            self._check_shards(names, by="the names of its shards count")
            logger.warning(
                "%s has no %s; reading all tensors of its %s shards", self.name, _INDEX, total
            )
            return [self.folder / name for name in names]
        return []

    def _check_shards(self, names: list[str], *, by: str) -> None:
        absent = [name for name in names if not (self.folder / name).is_file()]
        if absent:
            raise CheckpointError(
                f"{self.name} lacks files that {by}: {', '.join(absent)}. Download them again"
            )

    def _read_index(self) -> Mapping[str, str]:
        weight_map = self._json(_INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{_INDEX} of {self.name} has no weight_map")
        for name in weight_map.values():
            # A downloaded index must not refer to files outside of its folder.
            is_plain = isinstance(name, str) and PurePosixPath(name).name == name
            if not is_plain or "\\" in name or not name.endswith(".safetensors"):
                raise CheckpointError(
                    f"{_INDEX} of {self.name} must list safetensors files in its folder,"
                    f" got {name!r}"
                )
        return weight_map

    def _json(self, name: str) -> Mapping[str, object]:
        try:
            value = json.loads((self.folder / name).read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{name} of {self.name} is not JSON: {error}") from error
        except OSError as error:
            raise CheckpointError(f"{name} of {self.name} cannot be read: {error}") from error
        if not isinstance(value, dict):
            raise CheckpointError(f"{name} of {self.name} is not a JSON object")
        return value
