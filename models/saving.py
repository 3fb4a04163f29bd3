"""Checkpoint tensors of a model's parameters: the reverse of loading."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from numpy.typing import NDArray

from jaxserve.errors import ConfigError
from jaxserve.models.config import ModelConfig
from jaxserve.models.fitting import stored_model
from jaxserve.models.params import weight_specs
from jaxserve.models.weights import HfTensor
from jaxserve.quantization.layout import Path
from jaxserve.quantization.matrix import Matrix, WeightSpec

type HostArray = NDArray[Any]


def stored_tensors(
    config: ModelConfig, params: Mapping[Any, Any], tensors: Mapping[Path, tuple[HfTensor, ...]]
) -> dict[str, HostArray]:
    """Return a model's parameters on the host, by the names that transformers gives them.

    params: a tree as returned by `params_of`; the arrays keep their dtype. tensors: those of
    `hf_tensors(config)`. Raises ConfigError for a model that was fitted to a mesh, for a quantized
    or packed parameter, and for parameters that share a stored tensor and differ in it.
    """
    if stored_model(config) != config:
        raise ConfigError("config must be that of a checkpoint, got one that was fitted to a mesh")
    given, specs = flatten_dict(dict(params)), weight_specs(config)
    found: dict[str, _Tensor] = {}
    for path, of_path in tensors.items():
        if isinstance(given[path], Matrix):
            name = ".".join(map(str, path))
            raise ConfigError(
                f"params must be arrays, {name} is a {type(given[path]).__name__}; load the"
                " checkpoint without quantization"
            )
        whole = np.asarray(given[path])
        for tensor in of_path:
            found.setdefault(tensor.name, _Tensor(tensor.name)).add(tensor, specs[path], whole)
    return {name: tensor.whole for name, tensor in found.items()}


class _Tensor:
    """A stored tensor, and which of its elements have been written."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._array: HostArray | None = None
        self._is_written: HostArray = np.zeros(0, bool)

    def add(self, tensor: HfTensor, spec: WeightSpec, param: HostArray) -> None:
        """Write what a parameter has of the tensor."""
        piece = _arranged(tensor, spec, param)
        sizes, cut = tensor.sizes(spec), tensor.cut
        shape = [[sizes[word] for word in dim] for dim in tensor.dims]
        selected: list[Any] = [slice(None)] * len(shape)
        # Shape of the tensor with the cut dimension split into its outer axes and the rest.
        split = [[math.prod(dim)] for dim in shape]
        part = [*split]
        if cut is not None:
            outer, inner = shape[cut.dim][: cut.outer], math.prod(shape[cut.dim][cut.outer :])
            split[cut.dim], part[cut.dim] = [*outer, cut.total], [*outer, inner]
            selected[cut.dim : cut.dim + 1] = [
                *[slice(None)] * len(outer),
                slice(cut.start, cut.start + inner),
            ]
        if self._array is None:
            self._array = np.zeros([math.prod(dim) for dim in split], piece.dtype)
            self._is_written = np.zeros(self._array.shape, bool)
        flat = [size for dim in split for size in dim]
        array, is_written = self._array.reshape(flat), self._is_written.reshape(flat)
        at, piece = tuple(selected), piece.reshape([size for dim in part for size in dim])
        if np.any(is_written[at] & (array[at] != piece)):
            raise ConfigError(f"params must agree where they share a stored tensor, {self.name}")
        array[at], is_written[at] = piece, True

    @property
    def whole(self) -> HostArray:
        """The tensor."""
        assert self._array is not None, self.name
        assert self._is_written.all(), f"no parameter has all of {self.name}"
        return self._array


def _arranged(tensor: HfTensor, spec: WeightSpec, param: HostArray) -> HostArray:
    """Return a tensor's part of a parameter, its axes in the order of the tensor's dimensions."""
    ranges = {part.axis: slice(part.start, part.start + part.size) for part in tensor.parts}
    taken = param[tuple(ranges.get(axis, slice(None)) for axis in spec.axes)]
    sizes, factors = tensor.sizes(spec), dict(tensor.splits)
    words = [
        word for axis in spec.axes for word, _ in factors.get(axis, ((axis, spec.sizes[axis]),))
    ]
    dims = [word for dim in tensor.dims for word in dim]
    # Axes of length 1 that the tensor lacks, because it is one of a stack, come first.
    order = [*(word for word in words if word not in dims), *dims]
    split = taken.reshape([sizes[word] for word in words])
    return split.transpose([words.index(word) for word in order])
