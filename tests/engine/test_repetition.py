"""When an answer counts as stuck, against the definition."""

from hypothesis import given
from hypothesis import strategies as st

from jaxserve.api.repetition_detection import RepetitionDetectionParams
from jaxserve.frontend.repetition import RepetitionDetector


def is_stuck(tokens: list[int], params: RepetitionDetectionParams) -> bool:
    """Whether the tokens end in a pattern, `min_count` times in a row."""
    for size in range(params.min_pattern_size, params.max_pattern_size + 1):
        end = tokens[-size * params.min_count :]
        if len(end) == size * params.min_count and end == end[:size] * params.min_count:
            return True
    return False


@given(
    tokens=st.lists(st.integers(0, 2), max_size=60),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)).map(sorted),
    min_count=st.integers(2, 5),
)
def test_a_detector_says_it_at_the_token_where_it_is_so(
    tokens: list[int], sizes: list[int], min_count: int
) -> None:
    params = RepetitionDetectionParams(
        min_pattern_size=sizes[0], max_pattern_size=sizes[1], min_count=min_count
    )
    detector = RepetitionDetector(params)
    for count, token in enumerate(tokens, start=1):
        assert detector.push(token) == is_stuck(tokens[:count], params)


def test_a_pattern_size_of_zero_finds_nothing() -> None:
    detector = RepetitionDetector(RepetitionDetectionParams(max_pattern_size=0))
    assert not any(detector.push(7) for _ in range(50))
