"""Backend selection: the first candidate that supports a case, or the requested one."""

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

logger = logging.getLogger(__name__)


class Unsupported(Exception):  # noqa: N818 - a backend's answer rather than an error
    """Raised by a backend's check for a case that it does not support; the message is the reason.

    Its own class, so that an error inside a kernel is never mistaken for a refusal, which would
    silently select a slower backend.
    """


@dataclass(frozen=True, slots=True)
class Choice:
    """The selected backend, and why the backends preferred to it were refused.

    refusals: (backend, reason) pairs.
    """

    backend: str
    refusals: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """Return the name, followed by the refusals in parentheses."""
        refusals = "; ".join(f"{name}: {reason}" for name, reason in self.refusals)
        return f"{self.backend} ({refusals})" if refusals else self.backend


def choose(op: str, checks: Mapping[str, Callable[[], None]], backend: str | None) -> Choice:
    """Return the requested backend, or the first whose check does not raise Unsupported.

    checks: check function of each backend, in order of preference. The choice is logged once per op
    and set of refusals. Raises ValueError for an unknown backend, and Unsupported, with all
    reasons, if no backend supports the case.
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
