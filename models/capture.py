"""Capture named activations of a forward pass."""

from fnmatch import fnmatchcase

import jax
from jaxtyping import Array, Float, Int

from jaxserve.errors import ConfigError
from jaxserve.models.decoder import Decoder


def capture(
    model: Decoder, token_ids: Int[Array, "*batch tokens"], *names: str
) -> tuple[Float[Array, "*batch tokens vocab"], dict[str, Array]]:
    """Return the logits of `token_ids`, and the activations with the given names.

    names: names as in docs/models.md; `*` matches a part or a piece of it ("layers.*.attention.q").
    Activations keep the leading dimensions of `token_ids`. The function is pure, so it can be
    jitted, mapped and differentiated. Raises ConfigError for a name that matches nothing.
    """
    if token_ids.ndim > 1:
        return jax.vmap(lambda row: capture(model, row, *names))(token_ids)
    seen: dict[str, Array] = {}
    matched: set[str] = set()

    def keep(name: str, value: Array) -> Array:
        hits = [pattern for pattern in names if _matches(name, pattern)]
        if hits:
            matched.update(hits)
            seen[name] = value
        return value

    logits = model(token_ids, tap=keep)
    for pattern in names:
        if pattern not in matched:
            raise ConfigError(
                f"names must match activations of the model, {pattern!r} matches none"
            )
    return logits, seen


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
