"""Arrival times of requests: at a fixed or increasing rate, with random gaps, or all at once."""

import math
from dataclasses import dataclass
from random import Random

from jaxserve.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """Arrival process, as in vLLM's benchmark.

    request_rate: requests per second; infinite sends all at once. burstiness: shape of the gamma
    distribution of the gaps; 1 is a Poisson process, smaller values are burstier, larger ones more
    regular, and infinity is exactly regular. ramp_up: "linear" or "exponential" changes the rate
    from start_rps to end_rps over the run and replaces request_rate.
    """

    request_rate: float = math.inf
    burstiness: float = 1.0
    ramp_up: str | None = None
    start_rps: float = 0.0
    end_rps: float = 0.0

    def __post_init__(self) -> None:
        """Raise ConfigError for rates that are not positive."""
        for name in ("request_rate", "burstiness"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.ramp_up is not None and not 0 < self.start_rps < self.end_rps:
            raise ConfigError(
                "ramp_up_start_rps must be above 0 and below ramp_up_end_rps,"
                f" got {self.start_rps:g} and {self.end_rps:g}"
            )

    def times_s(self, num_requests: int, *, seed: int) -> list[float]:
        """Return when each request is sent, in seconds from the start.

        At a constant rate the last of n requests is sent after exactly n / rate seconds, whatever
        the seed, so that runs of different seeds load a server alike.
        """
        rng = Random(seed)  # noqa: S311  (nothing secret)
        times_s: list[float] = []
        now_s = 0.0
        for index in range(num_requests):
            now_s += self._gap_s(self.rate(index, num_requests), rng)
            times_s.append(now_s)
        if self.ramp_up is None and now_s > 0:
            scale = num_requests / self.request_rate / now_s
            times_s = [time_s * scale for time_s in times_s]
        return times_s

    def rate(self, index: int, num_requests: int) -> float:
        """Return the rate at which a request is sent."""
        progress = index / max(num_requests - 1, 1)
        match self.ramp_up:
            case "linear":
                return self.start_rps + (self.end_rps - self.start_rps) * progress
            case "exponential":
                rate: float = self.start_rps * (self.end_rps / self.start_rps) ** progress
                return rate
            case _:
                return self.request_rate

    def _gap_s(self, rate: float, rng: Random) -> float:
        if rate == math.inf:
            return 0.0
        if self.burstiness == math.inf:
            return 1 / rate
        return rng.gammavariate(self.burstiness, 1 / (rate * self.burstiness))
