"""Methods of a quantized checkpoint's matrices, from its settings and the headers of its files."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np

from jaxserve.errors import CheckpointError
from jaxserve.loading.checkpoint import Checkpoint
from jaxserve.loading.stored import StoredTensors
from jaxserve.models import ModelConfig, hf_tensors, weight_specs
from jaxserve.models.fitting import stored_model
from jaxserve.quantization import ARRAYS, Method, Path, WeightLayout
from jaxserve.quantization.formats import Format, read_format
from jaxserve.quantization.grouped_method import GroupedMethod
from jaxserve.quantization.layout import FLOAT_DTYPES


def checkpoint_layout(
    checkpoint: Checkpoint, config: ModelConfig, layout: WeightLayout
) -> WeightLayout:
    """Return the layout with the methods of a checkpoint's quantized matrices.

    Reads no weights, only what decides how they are kept. Raises CheckpointError for a format, a
    setting or a combination that is not supported.
    """
    settings = checkpoint.quantization
    if settings is None:
        return layout
    if layout.method != ARRAYS:
        raise CheckpointError(
            f"{checkpoint.name} is already quantized ({settings.get('quant_method')}): leave out"
            " --quantization"
        )
    return replace(layout, exceptions=_methods(checkpoint, config, read_format(settings)))


def _methods(checkpoint: Checkpoint, config: ModelConfig, form: Format) -> Mapping[Path, Method]:
    model, stored = stored_model(config), StoredTensors(checkpoint)
    specs, methods = weight_specs(model), dict[Path, Method]()
    for path, tensors in hf_tensors(model, stored=stored.names).items():
        if not specs[path].summed:
            continue
        kind = "Embedding" if path == ("embedding",) else "Linear"
        names = list(dict.fromkeys(tensor.name for tensor in tensors))
        found = [_method(name, kind, form, stored) for name in names]
        for (name, method), (other, others) in pairwise(zip(names, found, strict=True)):
            if method != others:
                raise CheckpointError(
                    f"{checkpoint.name}: {name} and {other} are joined, and must be quantized in"
                    f" the same way, got {method} and {others}"
                )
        _check_shared(found[0], names, stored)
        methods[path] = found[0]
    return methods


def _method(name: str, kind: str, form: Format, stored: StoredTensors) -> Method:
    """Return the method of a stored matrix.

    One that is stored in floating point is not quantized, whatever the settings say: not all tools
    list the modules that they leave out.
    """
    info = stored.get(name)
    if info is not None and info.dtype in FLOAT_DTYPES:
        return ARRAYS
    return form.method(name.removesuffix(".weight"), kind, stored) or ARRAYS


def _check_shared(method: Method, names: list[str], stored: StoredTensors) -> None:
    """Raise CheckpointError if joined matrices transform their common input differently."""
    ends = method.shared if isinstance(method, GroupedMethod) else ()
    for end in ends:
        tensors = [f"{name.removesuffix('.weight')}.{end}" for name in names]
        first, *others = map(stored.read, tensors)
        for tensor, other in zip(tensors[1:], others, strict=True):
            if not np.array_equal(first, other):
                raise CheckpointError(f"{tensors[0]} and {tensor} are joined, and must be equal")
