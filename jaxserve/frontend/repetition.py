"""Detect answers that repeat themselves."""

from jaxserve.api.repetition_detection import RepetitionDetectionParams


class RepetitionDetector:
    """Detects repetition in the tokens of one choice, at constant cost per pattern size."""

    def __init__(self, params: RepetitionDetectionParams) -> None:
        self._sizes = range(params.min_pattern_size, params.max_pattern_size + 1)
        self._min_count = params.min_count
        self._tokens: list[int] = []
        # By size: number of newest tokens in a row that equal the token `size` places earlier.
        self._runs = [0] * (params.max_pattern_size + 1)

    def push(self, token_id: int) -> bool:
        """Add a token; return whether the tokens end with a pattern repeated `min_count` times."""
        tokens, runs = self._tokens, self._runs
        is_found = False
        for size in self._sizes:
            if size <= len(tokens) and tokens[-size] == token_id:
                runs[size] += 1
                is_found |= runs[size] >= size * (self._min_count - 1)
            else:
                runs[size] = 0
        tokens.append(token_id)
        return is_found
