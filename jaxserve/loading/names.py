"""Names of stored tensors, without what tools leave in front of them or used to call them."""

from collections.abc import Iterable

# What wrappers put before every name: data parallelism, torch.compile, PEFT, a multimodal model
# around a language model, sentence-transformers. After it comes what the rest then begins with.
_WRAPPERS = (
    ("module.", ""),
    ("_orig_mod.", ""),
    ("base_model.model.", ""),
    ("0.auto_model.", ""),
    ("auto_model.", ""),
    ("language_model.", ""),
    ("model.language_model.", "model."),
    ("model.model.", "model."),
    ("model.lm_head.", "lm_head."),
    ("model.score.", "score."),
)
# Of a normalization, as TensorFlow calls them and old conversions of BERT still do.
_OLDER = ((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias"))


def usual_name(stored: str) -> str:
    """Return the name that transformers would save a tensor by, given one from a checkpoint."""
    name, before = stored, ""
    while name != before:
        before = name
        for wrapper, inner in _WRAPPERS:
            if name.startswith(wrapper):
                name = inner + name.removeprefix(wrapper)
    for older, newer in _OLDER:
        if name.endswith(older):
            return name.removesuffix(older) + newer
    return name


def stored_names(stored: Iterable[str]) -> dict[str, str]:
    """Return the names of stored tensors by their usual names; a usual name itself comes first."""
    names = {usual_name(name): name for name in stored}
    return names | {name: name for name in stored if name in names}
