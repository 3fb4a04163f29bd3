"""Whether and how a checkpoint pools: its architecture, and the files of sentence-transformers.

`modules.json` lists what stands around the model, and the folder of its pooling has a
`config.json`. Where a checkpoint has neither, the defaults are vLLM's.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxserve.api.pooling import Activation, PoolingModel, PoolingType
from jaxserve.config.engine import EngineOptions
from jaxserve.errors import CheckpointError, ConfigError
from jaxserve.loading.checkpoint import Checkpoint
from jaxserve.models import EncoderConfig, HfConfig, ModelConfig

_MODULES = "modules.json"
_MODES = {
    "cls_token": PoolingType.CLS,
    "cls": PoolingType.CLS,
    "mean_tokens": PoolingType.MEAN,
    "mean": PoolingType.MEAN,
    "lasttoken": PoolingType.LAST,
}
_POOLER_KEYS = ("pooling_type", "seq_pooling_type", "use_activation", "normalize")


def read_pooling(
    checkpoint: Checkpoint, model: ModelConfig, options: EngineOptions
) -> PoolingModel | None:
    """Return how a model pools, None if it generates text; see EngineOptions for `runner`.

    Raises ConfigError for what the model cannot do, CheckpointError for files that say something
    unsupported.
    """
    modules = _modules(checkpoint)
    if not _pools(model, options, has_modules=bool(modules)):
        return None
    num_labels = 0 if options.convert == "embed" else model.num_labels
    if options.convert == "classify" and not num_labels:
        raise ConfigError(
            "convert must be embed or auto for this model, got classify: it has no head that scores"
            " labels (its architecture would be ...ForSequenceClassification)"
        )
    pooling = _Pooling(checkpoint, model, modules)
    found = pooling.classifier() if num_labels else pooling.embedder()
    return _configured(found, options.pooler_config or {})


def default_max_length(checkpoint: Checkpoint) -> int | None:
    """Return the longest prompt that sentence-transformers would not cut, if it says so."""
    limit = _json(checkpoint, "sentence_bert_config.json").get("max_seq_length")
    return limit if isinstance(limit, int) and limit > 0 else None


def _pools(model: ModelConfig, options: EngineOptions, *, has_modules: bool) -> bool:
    if options.runner == "generate":
        if model.num_labels is not None:
            raise ConfigError(
                "runner must be auto or pooling for this model, got generate: by its architecture"
                " it has no head for tokens"
            )
        return False
    return options.runner == "pooling" or model.num_labels is not None or has_modules


class _Pooling:
    """What a checkpoint says of its pooling."""

    def __init__(
        self, checkpoint: Checkpoint, model: ModelConfig, modules: Mapping[str, str]
    ) -> None:
        self._checkpoint = checkpoint
        self._model = model
        self._modules = modules

    def classifier(self) -> PoolingModel:
        """Return how it scores labels."""
        hf = self._checkpoint.hf_config
        labels = HfConfig(hf).labels()
        kind = PoolingType.LAST if self._model.is_causal else PoolingType.CLS
        model = self._model
        tells_apart = isinstance(model, EncoderConfig) and model.num_segments > 1
        return PoolingModel(
            type=kind,
            width=len(labels),
            labels=labels,
            activation=_activation(hf, len(labels)),
            segment_stride=model.vocab_size if tells_apart else 0,
        )

    def embedder(self) -> PoolingModel:
        """Return how it makes embeddings."""
        kind = PoolingType.LAST if self._model.is_causal else PoolingType.CLS
        if "Pooling" in self._modules:
            kind = self._mode(_json(self._checkpoint, f"{self._modules['Pooling']}/config.json"))
        return PoolingModel(
            type=kind,
            width=self._model.embed,
            can_generate=self._model.num_labels is None,
            activates=not self._modules or "Normalize" in self._modules,
        )

    def _mode(self, config: Mapping[str, Any]) -> PoolingType:
        named = config.get("pooling_mode")
        prefix = "pooling_mode_"
        wanted = (
            [named]
            if isinstance(named, str)
            else [
                key.removeprefix(prefix)
                for key, value in config.items()
                if key.startswith(prefix) and value is True
            ]
        )
        if len(wanted) != 1 or wanted[0] not in _MODES:
            found = " and ".join(map(str, wanted)) or "unknown"
            raise CheckpointError(
                f"the pooling of {self._checkpoint.name} is {found}; jaxserve supports one of"
                f" {', '.join(_MODES)}"
            )
        return _MODES[wanted[0]]


def _modules(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the folders of sentence-transformers' modules, by the kinds they are."""
    path = checkpoint.folder / _MODULES
    if not path.is_file():
        return {}
    try:
        listed = json.loads(path.read_text("utf-8"))
        # A type is the path of a class, whose modules have moved from release to release.
        modules = {str(m["type"]).rpartition(".")[2]: str(m["path"]) for m in listed}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{_MODULES} of {checkpoint.name} is no list of modules") from error
    strange = modules.keys() - {"Transformer", "Pooling", "Normalize"}
    if strange:
        raise CheckpointError(
            f"{_MODULES} of {checkpoint.name} has {', '.join(sorted(strange))}; jaxserve supports"
            " Transformer, Pooling and Normalize"
        )
    if any("/" in folder or ".." in folder for folder in modules.values()):
        raise CheckpointError(f"{_MODULES} of {checkpoint.name} names folders elsewhere")
    return modules


def _configured(found: PoolingModel, wanted: Mapping[str, Any]) -> PoolingModel:
    """Return a pooling with the operator's changes."""
    unknown = wanted.keys() - set(_POOLER_KEYS)
    if unknown:
        raise ConfigError(
            f"pooler_config must have none but the keys {', '.join(_POOLER_KEYS)},"
            f" got {', '.join(sorted(unknown))}"
        )
    kind = wanted.get("pooling_type", wanted.get("seq_pooling_type", found.type))
    if kind not in set(PoolingType):
        raise ConfigError(
            f"pooling_type in pooler_config must be one of {', '.join(PoolingType)}, got {kind!r}"
        )
    activates = wanted.get("use_activation", wanted.get("normalize", found.activates))
    if not isinstance(activates, bool):
        raise ConfigError(
            f"use_activation in pooler_config must be true or false, got {activates!r}"
        )
    return replace(found, type=PoolingType(kind), activates=activates)


def _activation(hf: Mapping[str, object], num_labels: int) -> Activation:
    """Return what makes probabilities of scores, as transformers and sentence-transformers say."""
    nested = hf.get("sentence_transformers")
    named = nested.get("activation_fn") if isinstance(nested, dict) else None
    named = named or hf.get("sbert_ce_default_activation_function")
    if named is not None:
        known = {"Identity": Activation.NONE, "Sigmoid": Activation.SIGMOID}
        word = str(named).rpartition(".")[2]
        if word not in known:
            raise CheckpointError(
                f"config.json names {word} to activate scores; jaxserve supports {', '.join(known)}"
            )
        return known[word]
    match hf.get("problem_type"):
        case "regression":
            return Activation.NONE
        case "multi_label_classification":
            return Activation.SIGMOID
        case _:
            return Activation.SIGMOID if num_labels == 1 else Activation.SOFTMAX


def _json(checkpoint: Checkpoint, name: str) -> Mapping[str, Any]:
    path = checkpoint.folder / name
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} of {checkpoint.name} is not a JSON object")
    return value
