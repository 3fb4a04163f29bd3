"""Model parameters as plain trees: describe, initialize, and bind to modules."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, overload
from zlib import crc32

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from jaxserve.errors import ConfigError
from jaxserve.models.config import DecoderConfig, EncoderConfig, ModelConfig
from jaxserve.models.declare import spec_of
from jaxserve.models.decoder import Decoder
from jaxserve.models.encoder import Encoder
from jaxserve.models.fitting import fit, stored_layout, stored_model
from jaxserve.quantization.layout import Path, WeightLayout
from jaxserve.quantization.matrix import Matrix, WeightSpec

type Model = Decoder | Encoder

# Arrays of a model as nested dicts, keyed by attribute name and layer number. Any: the nesting
# depth varies.
type Params = dict[Any, Any]

_INITIAL_SCALE = 0.02


def abstract_params(config: ModelConfig, layout: WeightLayout | None = None) -> Params:
    """Describe the parameters before they exist, as a tree of jax.ShapeDtypeStruct.

    layout: float32 arrays by default. If it has a sharding, every leaf has one too. Raises
    ConfigError if a parameter cannot be sharded.
    """
    layout = layout or WeightLayout()
    specs = weight_specs(config)
    abstract: Params = unflatten_dict(
        {path: layout.describe(path, spec) for path, spec in specs.items()}
    )
    return abstract


def weight_specs(config: ModelConfig) -> dict[Path, WeightSpec]:
    """Return the axes and the shape of every parameter."""
    return {path: spec_of(param) for path, param in _declared_params(config)}


def random_params(config: ModelConfig, layout: WeightLayout | None = None, *, seed: int) -> Params:
    """Initialize parameters on their devices: matrices normal with deviation 0.02, norms one.

    A parameter's values depend on the seed and its own name only.
    """
    layout = layout or WeightLayout()
    specs, of_layout = weight_specs(config), stored_layout(config, layout)
    params: dict[Path, Array | Matrix] = {}
    for path, param in _declared_params(stored_model(config)):
        spec, of_param = specs[path], spec_of(param)
        key = jax.random.fold_in(jax.random.key(seed), crc32(_name(path).encode()))
        wanted = of_layout.of(spec).array(of_param.axes, of_param.shape)
        drawn_array = _draw(param.get_metadata("initial"), wanted)(key)
        weight = fit(drawn_array, spec.axes, of_param, spec, layout)
        method = layout.method_of(path, spec)
        params[path] = method.from_tensors({"weight": weight}, spec, layout.of(spec))
    drawn: Params = unflatten_dict(params)
    return drawn


@overload
def bind(config: DecoderConfig, params: Mapping[Any, Any]) -> Decoder: ...
@overload
def bind(config: EncoderConfig, params: Mapping[Any, Any]) -> Encoder: ...
def bind(config: ModelConfig, params: Mapping[Any, Any]) -> Model:
    """Return a model with the arrays of `params`, which are not copied. Works inside jit.

    params: a tree as returned by `params_of`, of arrays or tracers. Raises ConfigError if it
    belongs to another model.
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
    return nnx.split(config.architecture(config))


def _name(path: Path) -> str:
    return ".".join(str(part) for part in path)


def _declared_params(config: ModelConfig) -> list[tuple[Path, nnx.Param[Any]]]:
    # Any: nnx does not type its keys as attribute names and layer numbers.
    flat: Any = nnx.to_flat_state(_declared(config)[1])
    return [(path, param) for path, param in flat]


@lru_cache(maxsize=64)
def _draw(initial: str, wanted: jax.ShapeDtypeStruct) -> Callable[[Array], Array]:
    """Return the compiled initializer of one shape; a model has about ten shapes."""

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
