"""Read the pooling settings of a checkpoint from its architecture and sentence-transformers' files.

`modules.json` lists the modules around the model, and the folder of its pooling module has a
`config.json`. Without these files the defaults are vLLM's.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxserve.api.pooling import Activation, PoolingModel, PoolingType
from jaxserve.config.engine import EngineOptions
from jaxserve.errors import CheckpointError, ConfigError
from jaxserve.loading.checkpoint import Checkpoint
from jaxserve.models import EncoderConfig, HfConfig, ModelConfig
from jaxserve.models.config import Projection
from jaxserve.planning.st_modules import MODULES, list_modules, read_json, read_modules
from jaxserve.planning.token_scores import TokenScores, read_pair_settings

_MODES = {
    "cls_token": PoolingType.CLS,
    "cls": PoolingType.CLS,
    "mean_tokens": PoolingType.MEAN,
    "mean": PoolingType.MEAN,
    "lasttoken": PoolingType.LAST,
}
# Activations of Dense modules, by the names of torch's classes.
_ACTIVATIONS = {"Identity": None, "Tanh": "tanh", "GELU": "gelu", "SiLU": "silu"}
_POOLER_KEYS = (
    "pooling_type",
    "seq_pooling_type",
    "use_activation",
    "normalize",
    "enable_chunked_processing",
    "max_embed_len",
)


def read_pooling(
    checkpoint: Checkpoint,
    model: ModelConfig,
    options: EngineOptions,
    scores: TokenScores | None = None,
) -> PoolingModel | None:
    """Return the pooling of a model, or None if it generates text; see EngineOptions.runner.

    scores: tokens that score prompts, if the model has such a head. Raises ConfigError for options
    that the model does not support, and CheckpointError for unsupported settings in its files.
    """
    modules = read_modules(checkpoint)
    if not _pools(model, options, has_modules=bool(modules)):
        return None
    num_labels = 0 if options.convert == "embed" else model.num_labels
    if options.convert == "classify" and not num_labels:
        raise ConfigError(
            "convert must be embed or auto for this model, got classify: it has no classification"
            " head (its architecture would be ...ForSequenceClassification)"
        )
    pooling = _Pooling(checkpoint, model, modules)
    found = pooling.classifier(scores) if num_labels else pooling.embedder()
    if found.is_cross_encoder:
        settings = {} if options.chat_template is not None else read_pair_settings(checkpoint)
        found = replace(
            found,
            pairs_are_chats=settings is not None,
            opens_answer=(settings or {}).get("add_generation_prompt") is True,
        )
    return _configured(found, options.pooler_config or {})


def default_max_length(checkpoint: Checkpoint) -> int | None:
    """Return the maximum prompt length of sentence-transformers, or None if not set."""
    limit = read_json(checkpoint, "sentence_bert_config.json").get("max_seq_length")
    return limit if isinstance(limit, int) and limit > 0 else None


def _pools(model: ModelConfig, options: EngineOptions, *, has_modules: bool) -> bool:
    if options.runner == "generate":
        if model.num_labels is not None:
            raise ConfigError(
                "runner must be auto or pooling for this model, got generate: its architecture has"
                " no language model head"
            )
        return False
    return options.runner == "pooling" or model.num_labels is not None or has_modules


class _Pooling:
    """Reader of the pooling settings of a checkpoint."""

    def __init__(
        self, checkpoint: Checkpoint, model: ModelConfig, modules: Mapping[str, str]
    ) -> None:
        self._checkpoint = checkpoint
        self._model = model
        self._modules = modules

    def classifier(self, scores: TokenScores | None) -> PoolingModel:
        """Return the pooling for classification. scores: tokens that score prompts, if any."""
        hf = self._checkpoint.hf_config
        labels = HfConfig(hf).labels()
        if scores is not None:
            count = 1 if scores.contrasts else len(scores.ids)
            if len(labels) != count:
                labels = tuple(f"LABEL_{i}" for i in range(count))
        kind = PoolingType.LAST if self._model.is_causal else PoolingType.CLS
        if "classifier_pooling" in hf:
            kind = self._mode({"pooling_mode": hf["classifier_pooling"]})
        model = self._model
        tells_apart = isinstance(model, EncoderConfig) and model.num_segments > 1
        return PoolingModel(
            type=kind,
            width=len(labels) if scores is None else len(scores.ids),
            labels=labels,
            contrasts=scores is not None and scores.contrasts,
            activation=_activation(self._checkpoint, len(labels)),
            segment_stride=model.vocab_size if tells_apart else 0,
        )

    def embedder(self) -> PoolingModel:
        """Return the pooling for embeddings."""
        kind = PoolingType.LAST if self._model.is_causal else PoolingType.CLS
        if "Pooling" in self._modules:
            kind = self._mode(
                read_json(self._checkpoint, f"{self._modules['Pooling']}/config.json")
            )
        projections = read_projections(self._checkpoint)
        return PoolingModel(
            type=kind,
            width=projections[-1].width if projections else self._model.embed,
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


def read_projections(checkpoint: Checkpoint) -> tuple[Projection, ...]:
    """Return the Dense modules of sentence-transformers; raises CheckpointError."""
    found = []
    for kind, folder in list_modules(checkpoint):
        if kind != "Dense":
            continue
        where = f"{folder}/config.json"
        settings = HfConfig(read_json(checkpoint, where), where=where)
        named = (settings.word("activation_function") or "Tanh").rpartition(".")[2]
        if named not in _ACTIVATIONS:
            raise CheckpointError(
                f"{where} has the activation {named}; jaxserve supports {', '.join(_ACTIVATIONS)}"
            )
        found.append(
            Projection(
                folder=folder,
                width=settings.integer("out_features"),
                bias=settings.flag("bias", default=True),
                activation=_ACTIVATIONS[named],
            )
        )
    return tuple(found)


def with_projections(checkpoint: Checkpoint, model: ModelConfig) -> ModelConfig:
    """Return a pooling model with the Dense modules of its checkpoint; raises CheckpointError."""
    projections = read_projections(checkpoint)
    if model.num_labels or not projections:
        return model
    if isinstance(model, EncoderConfig):
        raise CheckpointError(
            f"{MODULES} of {checkpoint.name} has Dense, which jaxserve does not support for"
            f" {model.model_type}"
        )
    return replace(model, projections=projections)


def _configured(found: PoolingModel, wanted: Mapping[str, Any]) -> PoolingModel:
    """Return a pooling with the overrides of --pooler-config."""
    unknown = wanted.keys() - set(_POOLER_KEYS)
    if unknown:
        raise ConfigError(
            f"pooler_config must only have the keys {', '.join(_POOLER_KEYS)},"
            f" got {', '.join(sorted(unknown))}"
        )
    kind = wanted.get("pooling_type", wanted.get("seq_pooling_type", found.type))
    if kind not in set(PoolingType):
        raise ConfigError(
            f"pooling_type in pooler_config must be one of {', '.join(PoolingType)}, got {kind!r}"
        )
    activates = wanted.get("use_activation", wanted.get("normalize", found.activates))
    splits = wanted.get("enable_chunked_processing", False)
    for name, value in (("use_activation", activates), ("enable_chunked_processing", splits)):
        if not isinstance(value, bool):
            raise ConfigError(f"{name} in pooler_config must be true or false, got {value!r}")
    if splits and found.labels:
        raise ConfigError(
            "enable_chunked_processing in pooler_config must be false for classification, got true"
        )
    return replace(
        found,
        type=PoolingType(kind),
        activates=activates,
        splits_prompts=splits,
        max_embed_len=_max_embed_len(wanted, splits=splits),
    )


def _max_embed_len(wanted: Mapping[str, Any], *, splits: bool) -> int | None:
    limit = wanted.get("max_embed_len")
    if limit is None:
        return None
    if type(limit) is not int or limit < 1:
        raise ConfigError(
            f"max_embed_len in pooler_config must be an integer of at least 1, got {limit!r}"
        )
    if not splits:
        raise ConfigError(
            "max_embed_len in pooler_config needs enable_chunked_processing=true; --max-model-len"
            " limits prompts without it"
        )
    return limit


def _activation(checkpoint: Checkpoint, num_labels: int) -> Activation:
    """Return the activation of scores, as in transformers and sentence-transformers."""
    hf = checkpoint.hf_config
    nested = hf.get("sentence_transformers")
    named = nested.get("activation_fn") if isinstance(nested, dict) else None
    named = named or hf.get("sbert_ce_default_activation_function")
    named = named or read_json(checkpoint, "config_sentence_transformers.json").get("activation_fn")
    if named is not None:
        known = {"Identity": Activation.NONE, "Sigmoid": Activation.SIGMOID}
        word = str(named).rpartition(".")[2]
        if word not in known:
            raise CheckpointError(
                f"config.json has the activation {word}; jaxserve supports {', '.join(known)}"
            )
        return known[word]
    match hf.get("problem_type"):
        case "regression":
            return Activation.NONE
        case "multi_label_classification":
            return Activation.SIGMOID
        case _:
            return Activation.SIGMOID if num_labels == 1 else Activation.SOFTMAX
