"""Load parameters from safetensors files onto devices, one tensor at a time.

A tensor is read only when the previous one has been transferred, so the host needs memory for one
tensor.
"""

import logging
import math
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors import safe_open
from tqdm import tqdm

from jaxserve.errors import CheckpointError
from jaxserve.loading.checkpoint import Checkpoint, TensorInfo
from jaxserve.loading.names import stored_names, usual_name
from jaxserve.loading.placement import Joined, Piece
from jaxserve.loading.quantized import checkpoint_layout
from jaxserve.loading.stored import slicer
from jaxserve.models import (
    Decoder,
    HfTensor,
    ModelConfig,
    Params,
    bind,
    config_from_hf,
    hf_tensors,
    weight_specs,
)
from jaxserve.models.fitting import fit, stored_layout, stored_model
from jaxserve.quantization import Component, WeightLayout

logger = logging.getLogger(__name__)

# Maximum number of tensor names per kind in an error message.
_MOST_LISTED = 8
# Tables and masks saved by old releases of transformers; they are computed here.
_BUFFERS = (
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    ".masked_bias",
    ".attn.bias",
)
_HEAD = "lm_head.weight"
# Tensors of a sentence-transformers module.
_MODULE = re.compile(r"[0-9]+_Dense\.")
# Number of rows of a matrix to compare at a time.
_ROWS_AT_ONCE = 1024


def load_model(
    name: str | Path,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    hf_overrides: Mapping[str, object] | None = None,
) -> Decoder:
    """Load a checkpoint as a callable, differentiable model, without an engine.

    name: a folder or a hub name. dtype: dtype of the parameters, by default that of the checkpoint.
    hf_overrides: values that replace those of config.json. Raises CheckpointError.
    """
    checkpoint = Checkpoint.open(name, revision=revision, hf_overrides=hf_overrides)
    config = with_own_head(checkpoint, config_from_hf(checkpoint.hf_config))
    layout = WeightLayout(dtype=dtype or checkpoint.dtype)
    layout = checkpoint_layout(checkpoint, config, layout)
    return bind(config, load_params(checkpoint, config, layout))


def load_params(
    checkpoint: Checkpoint,
    config: ModelConfig,
    layout: WeightLayout,
    *,
    progress: bool = True,
) -> Params:
    """Load the parameters of a checkpoint into `layout`.

    progress: whether to show a progress bar on a terminal. Raises CheckpointError naming the
    tensors that are missing, unexpected, misshapen or of an unsupported dtype.
    """
    model, read_layout = stored_model(config), stored_layout(config, layout)
    specs, read_specs = weight_specs(config), weight_specs(model)
    names = stored_names(checkpoint.tensors)
    pieces = {
        path: [
            Piece(tensor, spec, layout.method_of(path, spec), read_layout.of(spec))
            for tensor in tensors
        ]
        for path, tensors in hf_tensors(model, stored=names).items()
        for spec in (read_specs[path],)
    }
    sources = [
        _Source(path, number, key, _as_stored(component, names))
        for path, of_path in pieces.items()
        for number, piece in enumerate(of_path)
        for key, component in piece.components.items()
    ]
    unused = {
        _stored_name(name, names)
        for of_path in pieces.values()
        for piece in of_path
        for name in piece.method.unused_names(piece.tensor.name)
    }
    _check(
        checkpoint,
        [source.component for source in sources],
        spare=config.spare_tensors,
        unused=unused,
    )
    read = {source.component.name for source in sources}
    _log_skipped(checkpoint, config.skipped_tensors, skipped=checkpoint.tensors.keys() - read)
    infos = checkpoint.tensors

    def info_of(source: _Source) -> TensorInfo:
        return infos[source.component.name]

    params: dict[Any, Any] = {}
    joined = {path: Joined(len(of_path)) for path, of_path in pieces.items()}
    waiting: dict[tuple[Any, int], dict[str, jax.Array]] = {}
    with tqdm(
        total=sum(_num_bytes(info_of(source)) for source in sources),
        desc="Loading weights",
        unit="B",
        unit_scale=True,
        disable=None if progress else True,  # None: on a terminal only
    ) as bar:
        in_order = sorted(sources, key=lambda source: info_of(source).file)
        for file, in_file in groupby(in_order, key=lambda source: info_of(source).file):
            with safe_open(file, framework="numpy") as opened:
                for path, number, key, component in in_file:
                    piece = pieces[path][number]
                    components = waiting.setdefault((path, number), {})
                    components[key] = piece.read(component, slicer(opened, infos[component.name]))
                    bar.update(_num_bytes(infos[component.name]))
                    if len(components) < len(piece.components):
                        continue
                    del waiting[path, number]
                    joined[path].add(piece, piece.arrange(components))
                    if joined[path].is_complete:
                        whole, spec = joined.pop(path), specs[path]
                        tensors = {
                            key: fit(tensor, whole.axes[key], piece.spec, spec, layout)
                            for key, tensor in whole.tensors.items()
                        }
                        params[path] = piece.method.from_tensors(tensors, spec, layout.of(spec))
    loaded: Params = unflatten_dict(params)
    return loaded


def with_own_head[Config: ModelConfig](checkpoint: Checkpoint, config: Config) -> Config:
    """Return the configuration, with untied embeddings if the checkpoint has its own head.

    A configuration may declare tied embeddings although the files contain a head that differs from
    the embedding. As in transformers, the stored head is then used, with a warning.
    """
    if not (config.tied_embeddings and config.num_labels is None and checkpoint.has_weights):
        return config
    names = stored_names(checkpoint.tensors)
    untied = cast(Config, config.untied())
    wanted = hf_tensors(untied)
    head, embedding = (
        _as_stored(wanted[path][0], names).name for path in (("lm_head",), ("embedding",))
    )
    stored = checkpoint.tensors
    if head not in stored or embedding not in stored:
        return config
    if _are_equal(stored[head], stored[embedding], names=(head, embedding)):
        return config
    logger.warning(
        "config.json of %s has tie_word_embeddings = true, but %s differs from %s in its files;"
        " using the stored head",
        checkpoint.name,
        head,
        embedding,
    )
    return untied


class _Source(NamedTuple):
    """A stored tensor to read: its parameter, its piece, and its component in that piece."""

    path: Any
    number: int
    key: str
    component: Component


def _num_bytes(info: TensorInfo) -> int:
    """Return the size of a stored tensor in bytes. Names of dtypes contain their bits."""
    bits = re.search(r"\d+", info.dtype)
    return math.prod(info.shape) * (int(bits[0]) if bits else 8) // 8


def _check(
    checkpoint: Checkpoint,
    components: Iterable[Component],
    *,
    spare: tuple[str, ...],
    unused: Collection[str],
) -> None:
    """Raise one CheckpointError that lists all problems with the stored tensors.

    spare: prefixes of tensors that the model does not need. unused: names of those that its
    quantization does not need.
    """
    stored = checkpoint.tensors
    expected = {component.name: component for component in components}
    missing = sorted(expected.keys() - stored.keys())
    unexpected = sorted(
        tensor
        for tensor in stored.keys() - expected.keys() - set(unused)
        if not _is_redundant(tensor, spare)
    )
    present = [(tensor, stored[tensor]) for tensor in sorted(expected.keys() & stored.keys())]
    misshapen = [
        f"{tensor} is {list(info.shape)}, not {list(expected[tensor].shape)}"
        for tensor, info in present
        if info.shape != expected[tensor].shape
    ]
    unreadable = [
        f"{tensor} is {info.dtype}"
        for tensor, info in present
        if info.dtype not in expected[tensor].dtypes
    ]
    readable = sorted({dtype for component in expected.values() for dtype in component.dtypes})
    found = (
        ("missing", missing),
        ("unexpected", unexpected),
        ("misshapen", misshapen),
        (f"of a dtype other than {', '.join(readable)}", unreadable),
    )
    faults = [f"{len(each)} {kind}: {_listed(each)}" for kind, each in found if each]
    if missing == [_HEAD]:
        faults.append(
            "a model whose head is its embedding needs tie_word_embeddings: true"
            """ (--hf-overrides '{"tie_word_embeddings": true}')"""
        )
    if faults:
        raise CheckpointError(
            f"tensors of {checkpoint.name} do not match its config.json: {'; '.join(faults)}"
        )


def _log_skipped(
    checkpoint: Checkpoint, prefixes: tuple[str, ...], *, skipped: Collection[str]
) -> None:
    """Log one line about the stored tensors of parts that the model lacks, if there are any.

    prefixes: of the names of tensors of such parts. skipped: names of all tensors that are not
    read.
    """
    usual = [usual_name(tensor) for tensor in skipped]
    counts = {prefix: sum(name.startswith(prefix) for name in usual) for prefix in prefixes}
    parts = ", ".join(f"{prefix}* ({count})" for prefix, count in counts.items() if count)
    if parts:
        logger.info("%s: skipping tensors of parts that are not served: %s", checkpoint.name, parts)


def _is_redundant(tensor: str, spare: tuple[str, ...]) -> bool:
    """Whether a stored tensor is not needed: a table, a mask, or an unused head or module."""
    is_module = _MODULE.match(tensor) is not None
    return is_module or tensor.endswith(_BUFFERS) or usual_name(tensor).startswith(spare)


def _as_stored[Named: (HfTensor, Component)](tensor: Named, names: Mapping[str, str]) -> Named:
    """Return a tensor with its name in the checkpoint."""
    return replace(tensor, name=_stored_name(tensor.name, names))


def _stored_name(name: str, names: Mapping[str, str]) -> str:
    """Return a tensor's name in the checkpoint, where the first prefix may be absent."""
    return names.get(name) or names.get(name.partition(".")[2]) or name


def _are_equal(first: TensorInfo, second: TensorInfo, *, names: tuple[str, str]) -> bool:
    """Whether two stored matrices are equal. Stops reading at the first difference."""
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    with ExitStack() as files:
        rows = [
            files.enter_context(safe_open(info.file, framework="numpy")).get_slice(name)
            for info, name in zip((first, second), names, strict=True)
        ]
        num_rows = first.shape[0]
        return all(
            np.array_equal(*(each[at : min(at + _ROWS_AT_ONCE, num_rows)] for each in rows))
            for at in range(0, num_rows, _ROWS_AT_ONCE)
        )


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
