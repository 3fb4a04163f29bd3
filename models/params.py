"""Parameters as plain trees: described, drawn at random, bound to the module that runs them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, overload
from zlib import crc32

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.sharding import Mesh, Sharding
from jax.typing import DTypeLike

from jaxserve.errors import ConfigError
from jaxserve.models.config import DecoderConfig, EncoderConfig, ModelConfig
from jaxserve.models.decoder import Decoder
from jaxserve.models.encoder import Encoder
from jaxserve.parallel.sharding import named_sharding
from jaxserve.quantization.int8 import Int8Matrix, quantize
from pallas_kernels import packed_linear
from pallas_kernels.packed_linear import PackedMatrix

type Model = Decoder | Encoder

# The arrays of a model as nested dicts, keyed by attribute name and layer number. Any: the
# nesting is as deep as the module's.
type Params = dict[Any, Any]

# What stands for a matrix that is not kept as an array.
type Matrix = Int8Matrix | PackedMatrix

# A parameter's place in Params: attribute names and layer numbers from the model down.
type Path = tuple[str | int, ...]

_INITIAL_SCALE = 0.02


def abstract_params(
    config: ModelConfig,
    *,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
    quantization: str | None = None,
    packed: str | None = None,
) -> Params:
    """Describe the parameters before they exist: a tree of jax.ShapeDtypeStruct.

    With a mesh, every leaf carries its sharding; raises ConfigError where one cannot be.
    quantization: a method of `jaxserve.quantization` for all matrices. packed: what they hold if
    they are packed (`pallas_kernels.packed_linear`), which needs a mesh of one CPU.
    """

    def array(axes: tuple[str, ...], sizes: dict[str, int], dtype: DTypeLike) -> Any:
        shape = tuple(sizes[word] for word in axes)
        sharding = None if mesh is None else named_sharding(axes, shape, mesh)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def describe(param: nnx.Param[jax.ShapeDtypeStruct]) -> jax.ShapeDtypeStruct | Matrix:
        axes, summed = param.get_metadata("axes"), param.get_metadata("summed")
        sizes = dict(zip(axes, param.get_value().shape, strict=True))
        if not summed or quantization is packed is None:
            described: jax.ShapeDtypeStruct = array(axes, sizes, dtype)
            return described
        kept = tuple(word for word in axes if word not in summed)
        if packed is not None:
            matrix = packed_linear.packed_spec(
                tuple(sizes[word] for word in summed),
                tuple(sizes[word] for word in kept),
                kind=packed,
                dtype=dtype,
            )
            words = ("panels", "panel")
            panels = array(words, dict(zip(words, matrix.panels.shape, strict=True)), jnp.uint8)
            return replace(matrix, panels=panels)
        return Int8Matrix(
            array(axes, sizes, jnp.int8), array(kept, sizes, jnp.float32), jnp.dtype(dtype).name
        )

    described = {path: describe(param) for path, param in _declared_params(config)}
    abstract: Params = unflatten_dict(described)
    return abstract


def param_axes(config: ModelConfig) -> dict[Path, tuple[str, ...]]:
    """Return, for every parameter, the words for what its dimensions hold."""
    return {path: param.get_metadata("axes") for path, param in _declared_params(config)}


def random_params(
    config: ModelConfig,
    *,
    seed: int,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
    quantization: str | None = None,
    packed: str | None = None,
) -> Params:
    """Draw parameters where they will live: matrices normal with deviation 0.02, norms one.

    A parameter's values depend on the seed and its own name only.
    """
    wanted = flatten_dict(abstract_params(config, dtype=dtype, mesh=mesh))
    finish = finishers(config, dtype=dtype, mesh=mesh, quantization=quantization, packed=packed)
    params: dict[Path, Array | Matrix] = {}
    for path, param in _declared_params(config):
        key = jax.random.fold_in(jax.random.key(seed), crc32(_name(path).encode()))
        drawn_array = _draw(param.get_metadata("initial"), wanted[path])(key)
        params[path] = finish[path](drawn_array) if path in finish else drawn_array
    drawn: Params = unflatten_dict(params)
    return drawn


def finishers(
    config: ModelConfig,
    *,
    dtype: DTypeLike,
    mesh: Mesh | None = None,
    quantization: str | None = None,
    packed: str | None = None,
) -> dict[Path, Callable[[Array], Matrix]]:
    """Return what turns each matrix into what stands for it; empty where arrays stay arrays."""
    described = flatten_dict(
        abstract_params(config, dtype=dtype, mesh=mesh, quantization=quantization, packed=packed)
    )
    finish: dict[Path, Callable[[Array], Matrix]] = {}
    for path, param in _declared_params(config):
        axes, wanted = param.get_metadata("axes"), described[path]
        summed = tuple(axes.index(word) for word in param.get_metadata("summed"))
        if isinstance(wanted, PackedMatrix):
            finish[path] = _pack(summed, wanted.kind, wanted.panels.sharding)
        elif isinstance(wanted, Int8Matrix):
            finish[path] = _quantize(summed, wanted.values.sharding, wanted.scales.sharding)
    return finish


@lru_cache(maxsize=64)
def _quantize(
    summed: tuple[int, ...], values: Sharding | None, scales: Sharding | None
) -> Callable[[Array], Matrix]:
    """Return the compiled quantization of matrices laid out alike."""

    def run(weight: Array) -> tuple[Array, Array]:
        matrix = quantize(weight, summed)
        return matrix.values, matrix.scales

    compiled = jax.jit(run, out_shardings=(values, scales))

    def finish(weight: Array) -> Matrix:
        rounded, scale = compiled(weight)
        return Int8Matrix(rounded, scale, weight.dtype.name)

    return finish


@lru_cache(maxsize=64)
def _pack(
    summed: tuple[int, ...], kind: str, sharding: Sharding | None
) -> Callable[[Array], Matrix]:
    """Return the compiled packing of matrices laid out alike."""

    def run(weight: Array) -> PackedMatrix:
        dtype = weight.dtype
        if kind != "int8":
            return packed_linear.pack(weight.astype(kind), summed, dtype=dtype)
        matrix = quantize(weight, summed)
        return packed_linear.pack(matrix.values, summed, scales=matrix.scales, dtype=dtype)

    return jax.jit(run, out_shardings=sharding)


@overload
def bind(config: DecoderConfig, params: Mapping[Any, Any]) -> Decoder: ...
@overload
def bind(config: EncoderConfig, params: Mapping[Any, Any]) -> Encoder: ...
def bind(config: ModelConfig, params: Mapping[Any, Any]) -> Model:
    """Make a model of `params`, which are shared, not copied. Meant for inside a jit, too.

    params: the tree that `params_of` returns, or tracers in its shape. Raises ConfigError where
    it is the tree of another model.
    """
    given = flatten_dict(dict(params))
    declared = _declared_params(config)
    strangers = given.keys() ^ {path for path, _ in declared}
    if strangers:
        names = ", ".join(sorted(_name(path) for path in strangers))
        raise ConfigError(f"params must be the tree of this model; missing or unexpected: {names}")
    filled = nnx.from_flat_state([(path, param.replace(given[path])) for path, param in declared])
    model: Model = nnx.merge(_declared(config)[0], filled)
    return model


def params_of(model: Model) -> Params:
    """Return the model's arrays as plain nested dicts."""
    params: Params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return params


@lru_cache(maxsize=8)
def _declared(config: ModelConfig) -> tuple[nnx.GraphDef[Any], nnx.State[Any, Any]]:
    if isinstance(config, EncoderConfig):
        return nnx.split(Encoder(config))
    return nnx.split((config.architecture or Decoder)(config))


def _name(path: Path) -> str:
    return ".".join(str(part) for part in path)


def _declared_params(config: ModelConfig) -> list[tuple[Path, nnx.Param[Any]]]:
    # Any: nnx types its keys more loosely than the attribute names and layer numbers they are.
    flat: Any = nnx.to_flat_state(_declared(config)[1])
    return [(path, param) for path, param in flat]


@lru_cache(maxsize=64)
def _draw(initial: str, wanted: jax.ShapeDtypeStruct) -> Callable[[Array], Array]:
    """Return the compiled draw of one shape; a model has about ten, whatever its depth."""

    def draw(key: Array) -> Array:
        match initial:
            case "normal":
                drawn = _INITIAL_SCALE * jax.random.normal(key, wanted.shape, jnp.float32)
                return drawn.astype(wanted.dtype)
            case "ones":
                return jnp.ones(wanted.shape, wanted.dtype)
            case _:
                return jnp.zeros(wanted.shape, wanted.dtype)

    return jax.jit(draw, out_shardings=wanted.sharding)
