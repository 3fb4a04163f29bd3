"""Parameters onto their devices: from safetensors, tensor by tensor.

Each device's part of a tensor is read from the memory-mapped file and sent as it is stored; the
device puts it into our layout and dtype (ten times faster than numpy, even on a CPU). The next
tensor is read when that is done, so the host holds one tensor beside what its devices hold.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from numpy.typing import NDArray
from safetensors import safe_open
from tqdm import tqdm

from jaxserve.errors import CheckpointError
from jaxserve.loading.checkpoint import Checkpoint, TensorInfo
from jaxserve.loading.names import stored_names, usual_name
from jaxserve.models import (
    Decoder,
    DecoderConfig,
    HfTensor,
    Matrix,
    ModelConfig,
    Params,
    abstract_params,
    bind,
    config_from_hf,
    finishers,
    hf_tensors,
    param_axes,
)

logger = logging.getLogger(__name__)

_READABLE = frozenset({"F32", "BF16", "F16"})
# Names of one kind in an error message: another model's folder would list thousands.
_MOST_LISTED = 8
# Tables and masks that older releases of transformers saved; they are computed here.
_BUFFERS = (
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    ".masked_bias",
)
_HEAD = "lm_head.weight"
# Rows of a matrix that are compared at a time.
_ROWS_AT_ONCE = 1024


def load_model(
    name: str | Path,
    *,
    dtype: DTypeLike | None = None,
    revision: str | None = None,
    hf_overrides: Mapping[str, object] | None = None,
) -> Decoder:
    """Load a checkpoint as a model to call, differentiate and take apart; no engine involved.

    name: a folder or a hub name. dtype: of the parameters, by default the checkpoint's.
    hf_overrides: values that replace those of its config.json. Raises CheckpointError.
    """
    checkpoint = Checkpoint.open(name, revision=revision, hf_overrides=hf_overrides)
    config = with_own_head(checkpoint, config_from_hf(checkpoint.hf_config))
    return bind(config, load_params(checkpoint, config, dtype=dtype or checkpoint.dtype))


def load_params(
    checkpoint: Checkpoint,
    config: ModelConfig,
    *,
    dtype: DTypeLike,
    mesh: Mesh | None = None,
    quantization: str | None = None,
    packed: str | None = None,
    progress: bool = True,
) -> Params:
    """Load a checkpoint's parameters as `dtype`, laid over `mesh` (default: JAX's default device).

    quantization, packed: see `abstract_params`; it is done matrix by matrix, on their devices.
    progress: whether to show a bar, on a terminal. Raises CheckpointError naming every tensor
    that is missing, unexpected, misshapen or of a dtype that cannot be read.
    """
    stored, axes = checkpoint.tensors, param_axes(config)
    names = stored_names(stored)
    tensors = {
        path: tuple(_as_stored(tensor, names) for tensor in parts)
        for path, parts in hf_tensors(config).items()
    }
    wanted = flatten_dict(abstract_params(config, dtype=dtype, mesh=mesh))
    targets = [
        _Target(path, index, tensor, axes[path], wanted[path])
        for path in axes
        for index, tensor in enumerate(tensors[path])
    ]
    finish = finishers(config, dtype=dtype, mesh=mesh, quantization=quantization, packed=packed)
    _check(checkpoint.name, targets, stored, spare=config.spare_tensors)

    def file_of(target: _Target) -> Path:
        return stored[target.tensor.name].file

    params: dict[Any, Array | Matrix] = {}
    parts: dict[Any, dict[int, Array]] = {}
    with tqdm(
        total=sum(target.num_bytes for target in targets),
        desc="Loading weights",
        unit="B",
        unit_scale=True,
        disable=None if progress else True,  # None: on a terminal only
    ) as bar:
        for file, in_file in groupby(sorted(targets, key=file_of), key=file_of):
            with safe_open(file, framework="numpy") as opened:
                for target in in_file:
                    source = opened.get_slice(target.tensor.name)
                    # Waiting bounds the host's copies: transfers to a device are asynchronous.
                    placed = target.place(source.__getitem__).block_until_ready()
                    bar.update(target.num_bytes)
                    together = parts.setdefault(target.path, {})
                    together[target.index] = placed
                    if len(together) < len(tensors[target.path]):
                        continue
                    del parts[target.path]
                    whole = target.join([together[index] for index in sorted(together)])
                    is_plain = target.path not in finish
                    params[target.path] = whole if is_plain else finish[target.path](whole)
    loaded: Params = unflatten_dict(params)
    return loaded


def with_own_head(checkpoint: Checkpoint, config: DecoderConfig) -> DecoderConfig:
    """Return a model's configuration, untied where its checkpoint has another head than it says.

    A configuration may say that the head is the embedding, and the files hold both: where they
    differ the file's head is used, as in transformers, with a warning.
    """
    if not (config.tied_embeddings and config.num_labels is None and checkpoint.has_weights):
        return config
    names = stored_names(checkpoint.tensors)
    untied = replace(config, tied_embeddings=False)
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
        "config.json of %s has tie_word_embeddings = true, but %s differs from %s in its files:"
        " the file's head is used",
        checkpoint.name,
        head,
        embedding,
    )
    return untied


@dataclass(frozen=True, slots=True)
class _Target:
    """A tensor to load: which of a parameter's it is, where it lies, what it shall become."""

    path: tuple[str | int, ...]
    index: int
    tensor: HfTensor
    axes: tuple[str, ...]
    whole: jax.ShapeDtypeStruct  # the parameter

    @property
    def wanted(self) -> jax.ShapeDtypeStruct:
        """What the tensor becomes: the parameter, or its part of it."""
        if self.tensor.part is None:
            return self.whole
        sizes = dict(zip(self.axes, self.whole.shape, strict=True)) | dict([self.tensor.part])
        shape = tuple(sizes[word] for word in self.axes)
        return jax.ShapeDtypeStruct(shape, self.whole.dtype, sharding=self.whole.sharding)

    @property
    def num_bytes(self) -> int:
        return int(self.wanted.size * self.wanted.dtype.itemsize)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        sizes = dict(zip(self.axes, self.wanted.shape, strict=True))
        return tuple(math.prod(sizes[word] for word in dim) for dim in self.tensor.dims)

    def join(self, parts: list[Array]) -> Array:
        """Return the parameter of which `parts` are all there is, in order."""
        if self.tensor.part is None:
            return parts[0]
        return _join(self.axes.index(self.tensor.part[0]), self.whole.sharding)(*parts)

    def place(self, read: Callable[[Any], NDArray[Any]]) -> Array:
        """Return the parameter on its devices; `read` gives a part of the stored tensor."""
        final = self.wanted.sharding
        shape = self.stored_shape
        stored: Array
        if isinstance(final, NamedSharding):
            # Of axes that share a stored dimension one at most is cut, and it is the outermost
            # of those that are longer than 1.
            cut = dict(zip(self.axes, final.spec, strict=True))
            spec = PartitionSpec(
                *(next((cut[word] for word in dim if cut[word]), None) for dim in self.tensor.dims)
            )
            stored = jax.make_array_from_callback(shape, NamedSharding(final.mesh, spec), read)
        else:
            stored = jnp.asarray(read((slice(None),) * len(shape)))
        return _arrange(self.tensor.dims, self.axes, self.wanted)(stored)


@lru_cache(maxsize=64)
def _arrange(
    dims: tuple[tuple[str, ...], ...], axes: tuple[str, ...], wanted: jax.ShapeDtypeStruct
) -> Callable[[Array], Array]:
    """Return the compiled change from the stored layout to `axes`; a model has about ten."""
    sizes = dict(zip(axes, wanted.shape, strict=True))
    words = [word for dim in dims for word in dim]

    def arrange(stored: Array) -> Array:
        split = stored.reshape([sizes[word] for word in words])
        return split.transpose([words.index(word) for word in axes]).astype(wanted.dtype)

    return jax.jit(arrange, out_shardings=wanted.sharding)


@lru_cache(maxsize=64)
def _join(axis: int, sharding: Any) -> Callable[..., Array]:
    """Return the compiled joining of a parameter's parts."""

    def join(*parts: Array) -> Array:
        return jnp.concatenate(parts, axis)

    return jax.jit(join, out_shardings=sharding)


def _check(
    name: str,
    targets: Iterable[_Target],
    stored: Mapping[str, TensorInfo],
    *,
    spare: tuple[str, ...],
) -> None:
    """Raise one CheckpointError that names all that is wrong with the stored tensors."""
    expected = {target.tensor.name: target.stored_shape for target in targets}
    missing = sorted(expected.keys() - stored.keys())
    unexpected = sorted(
        tensor for tensor in stored.keys() - expected.keys() if not _is_redundant(tensor, spare)
    )
    present = [(tensor, stored[tensor]) for tensor in sorted(expected.keys() & stored.keys())]
    misshapen = [
        f"{tensor} is {list(info.shape)}, not {list(expected[tensor])}"
        for tensor, info in present
        if info.shape != expected[tensor]
    ]
    unreadable = [
        f"{tensor} is {info.dtype}" for tensor, info in present if info.dtype not in _READABLE
    ]
    found = (
        ("missing", missing),
        ("unexpected", unexpected),
        ("misshapen", misshapen),
        (f"of a dtype other than {', '.join(sorted(_READABLE))}", unreadable),
    )
    faults = [f"{len(each)} {kind}: {_listed(each)}" for kind, each in found if each]
    if missing == [_HEAD]:
        faults.append(
            "a model whose head is its embedding needs tie_word_embeddings: true"
            """ (--hf-overrides '{"tie_word_embeddings": true}')"""
        )
    if faults:
        raise CheckpointError(f"tensors of {name} do not fit its config.json: {'; '.join(faults)}")


def _is_redundant(tensor: str, spare: tuple[str, ...]) -> bool:
    """Whether a stored tensor is of no use: a table or mask, a head that is tied or unused."""
    return tensor.endswith(_BUFFERS) or usual_name(tensor).startswith(spare)


def _as_stored(tensor: HfTensor, names: Mapping[str, str]) -> HfTensor:
    """Return a tensor by its name in the checkpoint: a bare model's has no `model.` before it."""
    bare = tensor.name.partition(".")[2]
    stored = names.get(tensor.name) or names.get(bare)
    return tensor if stored is None else replace(tensor, name=stored)


def _are_equal(first: TensorInfo, second: TensorInfo, *, names: tuple[str, str]) -> bool:
    """Whether two stored matrices are of the same numbers; reads up to the first difference."""
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
