"""Model families, one file or folder per Hugging Face `model_type`; imported as `jaxserve.models`.

A family reads its `config.json` into a model description. To add a family, add a file. Other
packages register families by an entry point of the group `jaxserve.models`, named for the
model_type, whose value is a module. Every process of a server finds those. `register_family`
registers a family in the current process only.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Any, Protocol, cast

from numpy.typing import NDArray

from jaxserve.errors import CheckpointError
from jaxserve.models.capture import capture as capture
from jaxserve.models.config import DecoderConfig as DecoderConfig
from jaxserve.models.config import Dense as Dense
from jaxserve.models.config import EncoderConfig as EncoderConfig
from jaxserve.models.config import GroupedQuery as GroupedQuery
from jaxserve.models.config import LayerConfig as LayerConfig
from jaxserve.models.config import ModelConfig as ModelConfig
from jaxserve.models.decoder import Decoder as Decoder
from jaxserve.models.encoder import Encoder as Encoder
from jaxserve.models.fitting import fitted as fitted
from jaxserve.models.forward import ForwardContext as ForwardContext
from jaxserve.models.forward import Tap as Tap
from jaxserve.models.hf_config import Modules, decoder_config
from jaxserve.models.hf_reader import HfConfig as HfConfig
from jaxserve.models.hf_rope import stretched_rope as stretched_rope
from jaxserve.models.hf_rope import with_overrides as with_overrides
from jaxserve.models.moe import MixtureOfExperts as MixtureOfExperts
from jaxserve.models.params import Model as Model
from jaxserve.models.params import Params as Params
from jaxserve.models.params import abstract_params as abstract_params
from jaxserve.models.params import bind as bind
from jaxserve.models.params import params_of as params_of
from jaxserve.models.params import random_params as random_params
from jaxserve.models.params import weight_specs as weight_specs
from jaxserve.models.saving import stored_tensors
from jaxserve.models.weights import Cut as Cut
from jaxserve.models.weights import HfTensor as HfTensor
from jaxserve.models.weights import Parts, label_rows, llama_tensors
from jaxserve.models.weights import Stored as Stored
from jaxserve.quantization.layout import Path as Path
from jaxserve.quantization.layout import WeightLayout

# Modules of this package that are not families.
_SHARED = frozenset(
    {
        "attention",
        "capture",
        "config",
        "declare",
        "decoder",
        "encoder",
        "fitting",
        "gated_delta",
        "forward",
        "hf_config",
        "hf_latent",
        "hf_lfm2",
        "hf_mamba2",
        "hf_moe",
        "hf_reader",
        "hf_rope",
        "latent",
        "mamba2",
        "mlp",
        "moe",
        "multimodal",
        "norm",
        "params",
        "parts",
        "qwen_hybrid",
        "saving",
        "short_conv",
        "weights",
        "work",
    }
)


ENTRY_POINTS = "jaxserve.models"


class Family(Protocol):
    """Interface of a family's module."""

    def config_from_hf(self, hf: Mapping[str, object]) -> ModelConfig:
        """Read a parsed `config.json`; raises CheckpointError."""
        ...

    def hf_tensors(self, config: Any) -> dict[Path, tuple[HfTensor, ...]]:
        """Return the checkpoint tensors of every parameter of `config`."""
        ...


@dataclass(frozen=True, kw_only=True)
class DecoderFamily(Modules):
    """Family that differs from Llama in some modules and checkpoint tensors.

    tensors, top_tensors: checkpoint tensors of each layer's and of the model's parameters, with the
    axes of their dimensions, as in `weights.py`.
    """

    tensors: Parts = field(default_factory=dict)
    top_tensors: Parts = field(default_factory=dict)

    def config_from_hf(self, hf: Mapping[str, object]) -> DecoderConfig:
        """See Family."""
        return decoder_config(HfConfig(hf), modules=self)

    def hf_tensors(self, config: DecoderConfig) -> dict[Path, tuple[HfTensor, ...]]:
        """See Family."""
        return llama_tensors(config, more=self.tensors, top=self.top_tensors)


# Families passed to `register_family`, by model_type.
_registered: dict[str, Family] = {}


def families() -> tuple[str, ...]:
    """Return the supported model types, sorted."""
    brought = {point.name for point in entry_points(group=ENTRY_POINTS)}
    return tuple(sorted(_own_families() | brought | _registered.keys()))


def register_family(model_type: str, family: Family) -> None:
    """Register a family, a module or an object, for a model type in this process.

    It takes precedence over a built-in family of the same type.
    """
    _registered[model_type] = family


def read_config(hf: Mapping[str, object]) -> ModelConfig:
    """Read a parsed `config.json` of any family.

    Raises CheckpointError with the key that is missing, malformed or unsupported.
    """
    return _family(hf.get("model_type")).config_from_hf(hf)


def config_from_hf(hf: Mapping[str, object]) -> DecoderConfig:
    """Read a parsed `config.json` of a decoder; raises CheckpointError."""
    config = read_config(hf)
    if not isinstance(config, DecoderConfig):
        raise CheckpointError(f"config.json has model_type = {config.model_type!r}, an encoder")
    return config


def hf_tensors(
    config: ModelConfig, *, stored: Collection[str] = ()
) -> dict[Path, tuple[HfTensor, ...]]:
    """Return the checkpoint tensors of every parameter of a model.

    stored: names in the checkpoint, which decide where a family has two ways to store a parameter:
    the second is in its `other_tensors(config)`.
    """
    family = _family(config.model_type)
    tensors = family.hf_tensors(config)
    if hasattr(family, "other_tensors"):
        others: dict[Path, tuple[HfTensor, ...]] = family.other_tensors(config)
        tensors |= {
            path: other
            for path, other in others.items()
            if all(tensor.name in stored for tensor in other)
        }
    if isinstance(config, DecoderConfig) and config.label_tokens:
        whole = family.hf_tensors(replace(config, num_labels=None, tied_embeddings=False))
        head, embedding = whole["lm_head",], whole["embedding",]
        is_tied = config.tied_embeddings and head[0].name not in stored
        tensors["score",] = label_rows(config, (embedding if is_tied else head)[0])
    return tensors


def hf_state(config: ModelConfig, params: Mapping[Any, Any]) -> dict[str, NDArray[Any]]:
    """Return the parameters of a model as transformers stores them, by tensor name, on the host.

    params: a tree as returned by `params_of`; the arrays keep their dtype. Raises ConfigError for a
    model that was fitted to a mesh, and for a quantized or packed parameter.
    """
    return stored_tensors(config, params, hf_tensors(config))


def init_model(config: DecoderConfig, *, seed: int = 0, dtype: str = "float32") -> Decoder:
    """Return a model with random parameters, ready to call, differentiate and train."""
    return bind(config, random_params(config, WeightLayout(dtype=dtype), seed=seed))


def _family(model_type: object) -> Family:
    if isinstance(model_type, str) and model_type in _registered:
        return _registered[model_type]
    # Check the names of our files first, and never import a name from a checkpoint.
    name = str(model_type).replace("-", "_")
    if name in _own_families():
        return cast(Family, import_module(f"{__name__}.{name}"))
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == model_type:
            return cast(Family, point.load())
    known = families()
    nearest = get_close_matches(str(model_type), known, n=1)
    hint = f"the nearest supported family is {nearest[0]}; " if nearest else ""
    raise CheckpointError(
        f"config.json has model_type = {model_type!r}; {hint}jaxserve supports {', '.join(known)}"
    )


def _own_families() -> set[str]:
    return {module.name for module in iter_modules(__path__)} - _SHARED
