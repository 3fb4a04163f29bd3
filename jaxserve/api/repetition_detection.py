"""Parameters of repetition detection, which `frontend/repetition.py` implements."""

from dataclasses import dataclass

from jaxserve.api.limits import MAX_COUNT, Limits

MAX_PATTERN_SIZE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class RepetitionDetectionParams:
    """When to end an answer that repeats itself.

    An answer ends once its last tokens are `min_count` copies of a pattern. Patterns have
    min_pattern_size to max_pattern_size tokens; max_pattern_size=0 disables the detection. Raises
    InvalidRequestError.
    """

    max_pattern_size: int
    min_pattern_size: int = 1
    min_count: int = 2

    def __post_init__(self) -> None:
        name = "repetition_detection"
        Limits(0, MAX_PATTERN_SIZE).check(f"{name}.max_pattern_size", self.max_pattern_size)
        if self.min_pattern_size == 0:  # vLLM treats 0 as 1
            object.__setattr__(self, "min_pattern_size", 1)
        longest = max(1, self.max_pattern_size)
        Limits(1, longest).check(f"{name}.min_pattern_size", self.min_pattern_size)
        Limits(2, MAX_COUNT).check(f"{name}.min_count", self.min_count)
