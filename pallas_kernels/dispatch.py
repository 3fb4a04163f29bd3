"""How an op picks its backend: the first candidate that accepts, or the one that was asked for."""

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

logger = logging.getLogger(__name__)


class Unsupported(Exception):  # noqa: N818 - it reads as what it says: the backend's answer
    """A backend's answer to a case it cannot do; the message is the reason.

    An own class, so that an error from deep inside a kernel never passes for a refusal and never
    silently selects a slower backend.
    """


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend that computes a case, and what those before it in preference lack."""

    backend: str
    refusals: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """Return the name, and in brackets every refusal."""
        refusals = "; ".join(f"{name}: {reason}" for name, reason in self.refusals)
        return f"{self.backend} ({refusals})" if refusals else self.backend


def choose(op: str, checks: Mapping[str, Callable[[], None]], backend: str | None) -> Choice:
    """Return the backend asked for, or else the first whose check raises no Unsupported.

    The choice is logged once per op and set of refusals. Raises ValueError for an unknown backend
    and Unsupported, with every reason, when none accepts.
    """
    if backend is not None and backend not in checks:
        raise ValueError(f"{op}: backend must be one of {', '.join(checks)}, got {backend!r}")
    candidates = checks if backend is None else {backend: checks[backend]}
    refusals: list[tuple[str, str]] = []
    for name, check in candidates.items():
        try:
            check()
        except Unsupported as reason:
            refusals.append((name, str(reason)))
        else:
            choice = Choice(name, tuple(refusals))
            _log(op, choice)
            return choice
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals)
    raise Unsupported(f"{op}: no backend accepts this case: {reasons}")


@functools.cache
def _log(op: str, choice: Choice) -> None:
    logger.info("%s runs on %s", op, choice)
