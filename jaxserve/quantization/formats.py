"""Formats of quantized checkpoints: which method each matrix of a checkpoint has.

A format is a file of this package with a function `read_format`. It gets the checkpoint's
`quantization_config`, and refuses what it does not know, before anything is loaded.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

import msgspec
from numpy.typing import NDArray

from jaxserve.errors import CheckpointError
from jaxserve.quantization.layout import Method

# The module of each `quant_method`.
FORMATS = {
    "auto-round": "auto_round",
    "awq": "awq",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed_tensors",
    "fp8": "fp8",
    "gptq": "gptq",
    "modelopt": "modelopt",
    "modelopt_fp4": "modelopt",
    "mxfp4": "mxfp4",
}


class StoredTensor(Protocol):
    """Dtype, as safetensors names it, and shape of a stored tensor."""

    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102


class Stored(Protocol):
    """Tensors of a checkpoint, by the names under which transformers would save them."""

    def get(self, name: str) -> StoredTensor | None:
        """Return a tensor's description; None if it is not stored, or no weights are there."""
        ...

    def read(self, name: str) -> NDArray[Any]:
        """Read a small tensor."""
        ...


class Format(Protocol):
    """A checkpoint's format."""

    def method(self, module: str, kind: str, stored: Stored) -> Method | None:
        """Return the method of a module's weight; None for one that is not quantized.

        module: its name, as "model.layers.0.mlp.down_proj". kind: "Linear" or "Embedding". Raises
        CheckpointError.
        """
        ...


def read_format(settings: Mapping[str, object]) -> Format:
    """Read a `quantization_config`. Raises CheckpointError with what is not supported."""
    name = settings.get("quant_method")
    if name not in FORMATS:
        raise CheckpointError(
            f"quantization_config has quant_method = {name!r}; jaxserve supports"
            f" {', '.join(FORMATS)}"
        )
    module = import_module(f"jaxserve.quantization.{FORMATS[str(name)]}")
    found: Format = module.read_format(settings)
    return found


def read_settings[Settings: msgspec.Struct](
    kind: type[Settings],
    values: Mapping[str, object],
    *,
    notes: Collection[str] = (),
    where: str = "quantization_config",
) -> Settings:
    """Convert a JSON object strictly. notes: keys that only record how the weights were made.

    Raises CheckpointError for an unknown key, or a value of the wrong type or range.
    """
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    unknown = sorted(values.keys() - known - {*notes, "quant_method"})
    if unknown:
        raise CheckpointError(
            f"{where} has {', '.join(f'{key} = {values[key]!r}' for key in unknown)}, which"
            " jaxserve does not know"
        )
    try:
        return msgspec.convert({key: values[key] for key in known & values.keys()}, kind)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{where}: {error}") from error


def only(condition: bool, reason: str) -> None:
    """Raise CheckpointError with a reason unless a condition holds."""
    if not condition:
        raise CheckpointError(f"quantization_config: {reason}")


def is_listed(module: str, listed: Sequence[str]) -> bool:
    """Return whether a list of modules to leave out has a module, as transformers reads it.

    It may have whole names, their ends, their beginnings, and regular expressions of beginnings.
    """
    return any(module.endswith(each) or regex_match(each, module) for each in listed)


def regex_match(pattern: str, name: str) -> bool:
    """Return whether a name begins with a regular expression from a checkpoint.

    Raises CheckpointError if it is not one.
    """
    try:
        return re.match(pattern, name) is not None
    except re.error as error:
        raise CheckpointError(
            f"quantization_config has the pattern {pattern!r}, which is not a regular expression:"
            f" {error}"
        ) from error


def scale_kind(stored: Stored, name: str, *, default: str) -> str:
    """Return the kind of scales of a stored tensor (`grouped.SCALES`). Raises CheckpointError."""
    info = stored.get(name)
    if info is None:
        return default
    kinds = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E8M0": "e8m0"}
    if info.dtype not in kinds:
        raise CheckpointError(f"{name} is {info.dtype}; jaxserve supports {', '.join(kinds)}")
    return kinds[info.dtype]
