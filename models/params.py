"""Parameters as plain trees: described, drawn at random, bound to the module that runs them."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any
from zlib import crc32

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxserve.errors import ConfigError
from jaxserve.models.config import DecoderConfig
from jaxserve.models.decoder import Decoder
from jaxserve.sharding import named_sharding

# The arrays of a Decoder as nested dicts, keyed by attribute name and layer number. Any: the
# nesting is as deep as the module's.
type Params = dict[Any, Any]

# A parameter's place in Params: attribute names and layer numbers from the Decoder down.
type Path = tuple[str | int, ...]

_INITIAL_SCALE = 0.02


def abstract_params(
    config: DecoderConfig, *, dtype: DTypeLike = jnp.float32, mesh: Mesh | None = None
) -> Params:
    """Describe the parameters before they exist: a tree of jax.ShapeDtypeStruct.

    With a mesh, every leaf carries its sharding; raises ConfigError where one cannot be.
    """

    def describe(param: nnx.Param[jax.ShapeDtypeStruct]) -> jax.ShapeDtypeStruct:
        shape = param.get_value().shape
        axes = param.get_metadata("axes")
        sharding = None if mesh is None else named_sharding(axes, shape, mesh)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    described = {path: describe(param) for path, param in _declared_params(config)}
    abstract: Params = unflatten_dict(described)
    return abstract


def param_axes(config: DecoderConfig) -> dict[Path, tuple[str, ...]]:
    """Return, for every parameter, the words for what its dimensions hold."""
    return {path: param.get_metadata("axes") for path, param in _declared_params(config)}


def random_params(
    config: DecoderConfig,
    *,
    seed: int,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
) -> Params:
    """Draw parameters where they will live: matrices normal with deviation 0.02, norms one.

    A parameter's values depend on the seed and its own name only.
    """
    wanted = flatten_dict(abstract_params(config, dtype=dtype, mesh=mesh))
    params: dict[Path, Array] = {}
    for path, param in _declared_params(config):
        key = jax.random.fold_in(jax.random.key(seed), crc32(_name(path).encode()))
        params[path] = _draw(param.get_metadata("initial"), wanted[path])(key)
    drawn: Params = unflatten_dict(params)
    return drawn


def bind(config: DecoderConfig, params: Mapping[Any, Any]) -> Decoder:
    """Make a Decoder of `params`, which are shared, not copied. Meant for inside a jit, too.

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
    model: Decoder = nnx.merge(_declared(config)[0], filled)
    return model


def params_of(model: Decoder) -> Params:
    """Return the model's arrays as plain nested dicts."""
    params: Params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return params


@lru_cache(maxsize=8)
def _declared(config: DecoderConfig) -> tuple[nnx.GraphDef[Decoder], nnx.State[Any, Any]]:
    return nnx.split(Decoder(config))


def _name(path: Path) -> str:
    return ".".join(str(part) for part in path)


def _declared_params(config: DecoderConfig) -> list[tuple[Path, nnx.Param[Any]]]:
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
