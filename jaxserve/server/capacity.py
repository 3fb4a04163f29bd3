"""The number of answers that a server process makes at once."""

from dataclasses import dataclass
from typing import override

from jaxserve.access.policy import Admission, Demand, Policy, Used
from jaxserve.access.principal import Principal
from jaxserve.errors import OverloadedError
from jaxserve.observability.metrics import Metrics
from jaxserve.server.errors import ShuttingDownError


class Capacity(Policy):
    """Admits requests up to a number of answers being made, and none while the server drains.

    num_active: answers being made. is_draining: whether every request is refused.
    """

    def __init__(self, max_active: int, *, metrics: Metrics) -> None:
        self.num_active = 0
        self.is_draining = False
        self._max_active = max_active
        self._metrics = metrics

    @override
    async def admit(self, principal: Principal, demand: Demand) -> Admission:
        """See Policy; raises OverloadedError, and counts what it refuses."""
        if self.is_draining:
            self._metrics.observe_rejection("shutting_down", model_name=demand.model)
            raise ShuttingDownError
        if self.num_active >= self._max_active:
            self._metrics.observe_rejection("concurrency", model_name=demand.model)
            raise OverloadedError(
                f"the server is making {self.num_active} answers, as many as it may",
                retry_after_s=1.0,
            )
        self.num_active += 1
        return _Place(self)


@dataclass(frozen=True, slots=True)
class _Place(Admission):
    capacity: Capacity

    @override
    def settle(self, used: Used) -> None:
        """See Admission."""
        self.capacity.num_active -= 1
