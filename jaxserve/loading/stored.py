"""Reading of stored tensors from safetensors files."""

import json
import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from jaxserve.loading.checkpoint import Checkpoint, TensorInfo
from jaxserve.loading.names import stored_names

# Dtypes that safetensors cannot give to numpy.
_NARROW = {"F8_E4M3": jnp.float8_e4m3fn, "F8_E8M0": jnp.float8_e8m0fnu}


class StoredTensors:
    """Tensors of a checkpoint by the names under which transformers would save them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Look at the headers of the files; a checkpoint without weights has no tensors."""
        self._tensors = checkpoint.tensors if checkpoint.has_weights else {}
        self._names = stored_names(self._tensors)

    @property
    def names(self) -> Mapping[str, str]:
        """Names in the files, by usual name."""
        return self._names

    def get(self, name: str) -> TensorInfo | None:
        """Return the description of a tensor, whose first prefix may be absent."""
        own = self._names.get(name) or self._names.get(name.partition(".")[2])
        return None if own is None else self._tensors[own]

    def read(self, name: str) -> NDArray[Any]:
        """Read a whole tensor."""
        info = self.get(name)
        assert info is not None, name
        with safe_open(info.file, framework="numpy") as opened:
            return np.array(slicer(opened, info)(...))


def slicer(opened: Any, info: TensorInfo) -> Callable[[Any], NDArray[Any]]:
    """Return a function that reads slices of a tensor. opened: its file, by `safe_open`."""
    read: Callable[[Any], NDArray[Any]]
    if info.dtype not in _NARROW:
        read = opened.get_slice(info.key).__getitem__
        return read
    start, offsets = _offsets(info.file, info.file.stat().st_mtime_ns)
    # safe_open has checked that the offsets fit the file and the shape.
    whole = np.memmap(info.file, np.uint8, "r", start + offsets[info.key], info.shape)
    read = whole.view(_NARROW[info.dtype]).__getitem__
    return read


@lru_cache(maxsize=4)
def _offsets(file: Path, changed: int) -> tuple[int, Mapping[str, int]]:
    """Return where the data of a file begins, and the offset of each tensor in it.

    changed: when the file was changed, in nanoseconds.
    """
    del changed
    with file.open("rb") as opened:
        (size,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(size))
    header.pop("__metadata__", None)
    return 8 + size, {name: each["data_offsets"][0] for name, each in header.items()}
