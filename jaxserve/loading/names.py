"""Normalize the names of stored tensors: strip wrapper prefixes, and update old names."""

from collections.abc import Iterable

# Prefixes added by wrappers, such as data parallelism, torch.compile, PEFT, multimodal models and
# sentence-transformers, each with its replacement.
_WRAPPERS = (
    ("module.", ""),
    ("_orig_mod.", ""),
    ("base_model.model.", ""),
    ("0.auto_model.", ""),
    ("auto_model.", ""),
    ("language_model.", ""),
    ("backbone.", "model."),
    ("model.language_model.", "model."),
    ("model.model.", "model."),
    ("model.lm_head.", "lm_head."),
    ("model.score.", "score."),
)
# TensorFlow's names for the parameters of a normalization, found in old conversions of BERT.
_OLDER = ((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias"))


def usual_name(stored: str) -> str:
    """Return the name under which transformers would save a stored tensor."""
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
    """Map usual names to stored names. A tensor stored under its usual name takes precedence."""
    names = {usual_name(name): name for name in stored}
    return names | {name: name for name in stored if name in names}
