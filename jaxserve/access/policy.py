"""Policies: whether a request is admitted, and what it used in the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from jaxserve.access.principal import Principal
from jaxserve.api.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Resources that one HTTP request asks for. requests: its engine requests for `model`."""

    model: str
    requests: Sequence[Request]
    is_batch: bool = False


@dataclass(slots=True)
class Used:
    """Tokens that the engine computed for a demand. cached_tokens are part of prompt_tokens."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class Admission(Protocol):
    """An admitted demand, which may hold a reservation."""

    def settle(self, used: Used) -> None:
        """Release the reservation and account for what was used; called exactly once.

        Must not block or raise: it also runs while a request is cancelled.
        """
        ...


class Policy(Protocol):
    """A rule that admits or refuses requests."""

    async def admit(self, principal: Principal, demand: Demand) -> Admission:
        """Admit a demand of a principal, or raise the JaxserveError that answers the request."""
        ...


class Policies(Policy):
    """Policies in order: the first to refuse decides, and the later ones are not asked."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self._policies = tuple(policies)

    async def admit(self, principal: Principal, demand: Demand) -> Admission:
        """See Policy."""
        admissions: list[Admission] = []
        try:
            for policy in self._policies:
                # Not a comprehension: one that a refusal ends would lose the admissions before it.
                admissions.append(await policy.admit(principal, demand))  # noqa: PERF401
        except BaseException:
            _Admissions(admissions).settle(Used())
            raise
        return _Admissions(admissions)


@dataclass(frozen=True, slots=True)
class _Admissions(Admission):
    parts: Sequence[Admission]

    def settle(self, used: Used) -> None:
        """See Admission; the last admission is settled first."""
        for part in reversed(self.parts):
            part.settle(used)
