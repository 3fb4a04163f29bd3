"""Read which tokens of the vocabulary score a prompt, in rerankers that answer yes or no.

Such a checkpoint is a language model. Its classification head is made of rows of the language model
head. vLLM's `hf_overrides` name the tokens, or a LogitScore module of sentence-transformers does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxserve.errors import CheckpointError
from jaxserve.loading.checkpoint import Checkpoint
from jaxserve.models import DecoderConfig, HfConfig, ModelConfig
from jaxserve.planning.st_modules import read_json, read_modules
from jaxserve.tokenization.tokenizer import Tokenizer

# Prompt of the Qwen3 rerankers: Zhang et al., "Qwen3 Embedding", 2025, arXiv:2506.05176, and the
# cards of the published checkpoints. `instruction` is the name that vLLM and
# sentence-transformers use.
QWEN3_RERANKER_TEMPLATE = """\
{%- set task = "Given a web search query, retrieve relevant passages that answer the query" -%}
<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. \
Note that the answer can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: {{ instruction | default(task, true) }}
<Query>: {{ (messages | selectattr("role", "equalto", "query") | first).content }}
<Document>: {{ (messages | selectattr("role", "equalto", "document") | first).content }}<|im_end|>
<|im_start|>assistant
<think>

</think>

{{ "" }}"""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Tokens whose logits after a prompt are its scores.

    contrasts: whether there are two tokens, and the score is the logit of the second minus that of
    the first. template: chat template for pairs of texts, if it is not the checkpoint's.
    """

    ids: tuple[int, ...]
    contrasts: bool
    template: str | None = None


def read_token_scores(checkpoint: Checkpoint, tokenizer: Path) -> TokenScores | None:
    """Return the tokens that score prompts; None if the checkpoint names none.

    tokenizer: folder of the tokenizer. Raises CheckpointError.
    """
    config = HfConfig(checkpoint.hf_config)
    words = config.words("classifier_from_token")
    is_contrast = config.flag("is_original_qwen3_reranker", default=False)
    if words is not None:
        if len(words) < (2 if is_contrast else 1) or (is_contrast and len(words) > 2):
            raise CheckpointError(
                "classifier_from_token in config.json must be"
                f" {'[no, yes]' if is_contrast else 'a list of tokens'}, got {list(words)}"
            )
        ids = _ids_of(words, tokenizer)
        return TokenScores(ids, is_contrast, QWEN3_RERANKER_TEMPLATE if is_contrast else None)
    if is_contrast:
        raise CheckpointError(
            "is_original_qwen3_reranker in config.json needs classifier_from_token, usually"
            """ ["no", "yes"]"""
        )
    folder = read_modules(checkpoint).get("LogitScore")
    if folder is None:
        return None
    where = f"{folder}/config.json"
    module = HfConfig(read_json(checkpoint, where), where=where)
    true_id = module.integer("true_token_id")
    false_id = module.optional_integer("false_token_id", low=0)
    ids = (true_id,) if false_id is None else (false_id, true_id)
    return TokenScores(ids, false_id is not None)


def with_token_scores(model: ModelConfig, scores: TokenScores | None) -> ModelConfig:
    """Return the model with a classification head of rows of its language model head.

    Raises CheckpointError for an encoder, and for tokens beyond the vocabulary.
    """
    if scores is None:
        return model
    if not isinstance(model, DecoderConfig):
        raise CheckpointError(
            "classifier_from_token in config.json needs a decoder; jaxserve does not support it for"
            f" {model.model_type}"
        )
    if max(scores.ids) >= model.vocab_size:
        raise CheckpointError(
            f"tokens that score prompts must be below vocab_size ({model.vocab_size}), got"
            f" {max(scores.ids)}"
        )
    return replace(model, num_labels=len(scores.ids), label_tokens=scores.ids)


def read_pair_settings(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """Return the arguments for rendering pairs of texts by the chat template, of a CrossEncoder.

    None if sentence-transformers' files do not say that the template renders them.
    """
    kind = read_json(checkpoint, "config_sentence_transformers.json").get("model_type")
    settings = read_json(checkpoint, "sentence_bert_config.json")
    if kind != "CrossEncoder" or "message" not in (settings.get("modality_config") or {}):
        return None
    arguments: Mapping[str, Any] = settings.get("processing_kwargs") or {}
    return arguments.get("chat_template") or {}


def _ids_of(words: tuple[str, ...], folder: Path) -> tuple[int, ...]:
    backend = Tokenizer.load(folder).backend
    ids = []
    for word in words:
        token_id = backend.token_to_id(word)
        if token_id is None:
            raise CheckpointError(
                f"classifier_from_token in config.json has {word!r}, which is not a token of the"
                f" tokenizer in {folder}"
            )
        ids.append(token_id)
    return tuple(ids)
