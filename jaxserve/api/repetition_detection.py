"""When an answer counts as stuck, and ends; `frontend/repetition.py` looks for it."""

from dataclasses import dataclass

from jaxserve.api.limits import MAX_COUNT, Limits

MAX_PATTERN_SIZE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class RepetitionDetectionParams:
    """When an answer counts as stuck: it ends in a pattern of tokens, `min_count` times in a row.

    Patterns of min_pattern_size to max_pattern_size tokens are looked for; a max_pattern_size of 0
    looks for none. Raises InvalidRequestError.
    """

    max_pattern_size: int
    min_pattern_size: int = 1
    min_count: int = 2

    def __post_init__(self) -> None:
        name = "repetition_detection"
        Limits(0, MAX_PATTERN_SIZE).check(f"{name}.max_pattern_size", self.max_pattern_size)
        if self.min_pattern_size == 0:  # vLLM's way to say 1
            object.__setattr__(self, "min_pattern_size", 1)
        longest = max(1, self.max_pattern_size)
        Limits(1, longest).check(f"{name}.min_pattern_size", self.min_pattern_size)
        Limits(2, MAX_COUNT).check(f"{name}.min_count", self.min_count)
