"""Model families, one file per Hugging Face `model_type`; imported as `jaxserve.models`.

A family's file reads its `config.json` into a `DecoderConfig`; what the families share is in
`decoder.py`. To add a family, add a file.
"""

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules

from flax import nnx
from jax.typing import DTypeLike

from jaxserve.errors import CheckpointError
from jaxserve.models.config import DecoderConfig as DecoderConfig
from jaxserve.models.decoder import Decoder as Decoder
from jaxserve.models.decoder import Params as Params
from jaxserve.models.decoder import abstract_params as abstract_params
from jaxserve.models.decoder import bind as bind
from jaxserve.models.decoder import params_of as params_of

_SHARED = frozenset({"capture", "config", "decoder", "hf_config", "weights"})


def families() -> tuple[str, ...]:
    """Return the model types that can be served: the names of the files here."""
    return tuple(sorted({module.name for module in iter_modules(__path__)} - _SHARED))


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a parsed `config.json`.

    Raises CheckpointError naming the key that is missing, malformed or unsupported.
    """
    model_type = hf.get("model_type")
    if model_type not in families():
        raise CheckpointError(
            f"config.json has model_type = {model_type!r};"
            f" jaxserve supports {', '.join(families())}"
        )
    config: DecoderConfig = import_module(f"{__name__}.{model_type}").config_from_hf(hf)
    return config


def init_model(config: DecoderConfig, *, seed: int = 0, dtype: DTypeLike = "float32") -> Decoder:
    """Return a model with random parameters, ready to call, differentiate and train."""
    return Decoder(config, rngs=nnx.Rngs(seed), dtype=dtype)
