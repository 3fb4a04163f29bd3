"""Sampling by its definition: plain Python and float64 numpy, a row at a time, with sorts."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from jaxserve.api.sampling_params import SamplingParams

type Logits = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What a request asks of the distribution its tokens are sampled from."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def kept(logits: Logits, filters: Filters) -> NDArray[np.bool_]:
    """Which tokens the filters keep: min-p, then top-k, then top-p of what is left, with ties."""
    weights = _weights(logits, filters)
    keeps = weights >= filters.min_p
    if 0 < filters.top_k < len(weights):
        keeps &= weights >= np.sort(weights)[-filters.top_k]
    if filters.top_p < 1.0:
        left = np.sort(weights[keeps])[::-1]
        last = int(np.searchsorted(np.cumsum(left), filters.top_p * left.sum()))
        keeps &= weights >= left[min(last, len(left) - 1)]
    return keeps


def distribution(logits: Logits, filters: Filters | None = None) -> NDArray[np.float64]:
    """Return the probability of every token."""
    filters = filters or Filters()
    weights = np.where(kept(logits, filters), _weights(logits, filters), 0.0)
    return np.asarray(weights / weights.sum())


def _weights(logits: Logits, filters: Filters) -> NDArray[np.float64]:
    scaled = np.asarray(logits, np.float64) / filters.temperature
    return np.asarray(np.exp(scaled - scaled.max()))


def adjusted(
    logits: Logits,
    params: SamplingParams,
    *,
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
    stop_ids: Sequence[int] = (),
    bad_word_ids: Sequence[tuple[int, ...]] = (),
) -> NDArray[np.float64]:
    """Return the logits after penalties, biases and bans."""
    result = []
    tokens = (*prompt_ids, *output_ids)
    for token, logit in enumerate(logits.tolist()):
        if token in tokens:
            r = params.repetition_penalty
            logit = logit / r if logit > 0 else logit * r
        count = output_ids.count(token)
        logit -= params.frequency_penalty * count + params.presence_penalty * (count > 0)
        logit += params.logit_bias.get(token, 0.0)
        is_allowed = params.allowed_token_ids is None or token in params.allowed_token_ids
        if len(output_ids) < params.min_tokens and token in stop_ids:
            is_allowed = False
        for word in bad_word_ids:
            if word[-1] == token and (*tokens, token)[-len(word) :] == word:
                is_allowed = False
        result.append(logit if is_allowed else -np.inf)
    return np.array(result)


def chi_square_deviation(counts: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """How many standard deviations Pearson's statistic lies above what chance would give.

    By the cube-root approximation (Wilson and Hilferty 1931, doi:10.1073/pnas.17.12.684). Tokens
    expected fewer than 5 times are counted together; one of probability 0 that was sampled is
    infinitely far.
    """
    if counts[probabilities == 0].any():
        return np.inf
    expected = probabilities * counts.sum()
    is_rare = expected < 5
    observed = np.append(counts[~is_rare], counts[is_rare].sum())
    expected = np.append(expected[~is_rare], expected[is_rare].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    freedom = len(observed) - 1
    if freedom == 0:
        return 0.0
    statistic = float(np.sum((observed - expected) ** 2 / expected))
    spread = 2 / (9 * freedom)
    return float(((statistic / freedom) ** (1 / 3) - (1 - spread)) / sqrt(spread))
