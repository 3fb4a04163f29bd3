"""How an op picks its backend: the first candidate that accepts, or the one that was asked for."""

import functools
import logging
from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)


class Unsupported(Exception):  # noqa: N818 - it reads as what it says: the backend's answer
    """A backend's answer to a case it cannot do; the message is the reason.

    An own class, so that an error from deep inside a kernel never passes for a refusal and never
    silently selects a slower backend.
    """


def first_supported[**P, R](
    op: str,
    backends: Mapping[str, Callable[P, R]],
    backend: str | None,
    *args: P.args,
    **kwargs: P.kwargs,
) -> R:
    """Call the backend asked for, or else the first of `backends` that accepts the arguments.

    The choice is logged once per op and set of refusals. Raises ValueError for an unknown backend
    and Unsupported, with every reason, when none accepts.
    """
    if backend is not None and backend not in backends:
        raise ValueError(f"{op}: backend must be one of {', '.join(backends)}, got {backend!r}")
    candidates = backends if backend is None else {backend: backends[backend]}
    refusals: list[str] = []
    for name, function in candidates.items():
        try:
            result = function(*args, **kwargs)
        except Unsupported as reason:
            refusals.append(f"{name}: {reason}")
        else:
            _log_choice(op, name, tuple(refusals))
            return result
    raise Unsupported(f"{op}: no backend accepts this case: " + "; ".join(refusals))


@functools.cache
def _log_choice(op: str, name: str, refusals: tuple[str, ...]) -> None:
    because = f" ({'; '.join(refusals)})" if refusals else ""
    logger.info("%s runs on the %s backend%s", op, name, because)
