"""Beam search: rounds of requests for one token each, of which the likeliest are continued.

The engine knows nothing of it. What a round computes, the next finds in the prefix cache.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from jaxserve.api.limits import Limits, show
from jaxserve.api.request import (
    LIMITS,
    FinishReason,
    PositionLogprobs,
    Request,
    SamplingParams,
    TokenEvent,
)
from jaxserve.errors import InvalidRequestError, JaxserveError

LENGTH_PENALTY_LIMITS = Limits(-10.0, 10.0)
# Where nothing is drawn these change nothing.
TEMPERATURES = (0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearchParams:
    """How to search; names as in vLLM.

    beam_width: answers wanted, and beams continued in each round. length_penalty: the power of its
    length by which an answer's log-probability is divided, so that above 0 longer ones gain.
    temperature: 0 or 1, as nothing is drawn: the model's own log-probabilities are compared.
    Raises InvalidRequestError.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        Limits(1).check("beam_width", self.beam_width)
        LIMITS["max_tokens"].check("max_tokens", self.max_tokens)
        LENGTH_PENALTY_LIMITS.check("length_penalty", self.length_penalty)
        if self.temperature not in TEMPERATURES:
            raise InvalidRequestError(
                f"temperature must be 0 or 1 in a beam search, which draws nothing,"
                f" got {show(self.temperature)}",
                param="temperature",
            )


def check_search(
    beam_width: int, *, max_logprobs: int, logprobs_mode: str, param: str = "beam_width"
) -> None:
    """Raise InvalidRequestError unless an engine of these settings reports what a search needs.

    param: what the width is called.
    """
    if 2 * beam_width > max_logprobs:
        raise InvalidRequestError(
            f"{param} must be at most {max_logprobs // 2} in a beam search, half of max_logprobs,"
            f" got {beam_width}",
            param=param,
        )
    if not logprobs_mode.endswith("logprobs"):
        raise InvalidRequestError(
            f"beam search compares log-probabilities: there are none with logprobs_mode"
            f" {logprobs_mode}",
            param=param,
        )


@dataclass(frozen=True, slots=True)
class Beam:
    """The beginning of an answer, or a whole one; logprobs align with token_ids."""

    token_ids: tuple[int, ...] = ()
    cum_logprob: float = 0.0
    logprobs: tuple[PositionLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None


class BeamSearch:
    """One search. While there are `requests`, run them all and `extend` by what they report.

    request: the prompt to answer, with the number of log-probabilities to report. eos_ids: tokens
    that end an answer, beside the request's own stop tokens.
    """

    def __init__(
        self, request: Request, params: BeamSearchParams, *, eos_ids: Iterable[int]
    ) -> None:
        self._request = request
        self._params = params
        self._eos_ids = frozenset() if params.ignore_eos else frozenset(eos_ids)
        self._stop_ids = self._eos_ids | set(request.params.stop_token_ids)
        self._beams = [Beam()]
        self._complete: list[Beam] = []
        self._round = 0
        asked, wanted = request.params.logprobs or 0, 2 * params.beam_width
        # How many alternatives answers tell, None for all of the vocabulary.
        self._num_top = None if asked == -1 else asked
        self._one_token = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            ignore_eos=True,
            detokenize=False,
            logprobs=-1 if asked == -1 else max(wanted, asked),
        )

    def requests(self) -> list[Request]:
        """Return what to run next: a request for each beam, none when the search is over."""
        if self._round == self._params.max_tokens or self._is_decided():
            return []
        return [
            replace(
                self._request,
                id=f"{self._request.id}-{self._round}-{index}",
                prompt_ids=self._request.prompt_ids + beam.token_ids,
                params=self._one_token,
            )
            for index, beam in enumerate(self._beams)
        ]

    def extend(self, positions: Sequence[PositionLogprobs]) -> None:
        """Continue each beam by the likeliest of its next tokens, and keep the best of all."""
        self._round += 1
        width = self._params.beam_width
        found: list[Beam] = []
        for beam, position in zip(self._beams, positions, strict=True):
            for scored in position.top[: 2 * width]:
                top = position.top[: self._num_top]
                longer = Beam(
                    (*beam.token_ids, scored.token_id),
                    beam.cum_logprob + scored.logprob,
                    (*beam.logprobs, PositionLogprobs(scored, top)),
                )
                if scored.token_id in self._stop_ids:
                    stop_reason = None if scored.token_id in self._eos_ids else scored.token_id
                    ended = replace(
                        longer, finish_reason=FinishReason.STOP, stop_reason=stop_reason
                    )
                    self._complete.append(ended)
                else:
                    found.append(longer)
        self._beams = sorted(found, key=lambda beam: beam.cum_logprob, reverse=True)[:width]
        self._complete = sorted(self._complete, key=self.score, reverse=True)[:width]

    def best(self) -> list[Beam]:
        """Return the answers, the best first; of no more tokens than were allowed."""
        ended = [replace(beam, finish_reason=FinishReason.LENGTH) for beam in self._beams]
        answers = sorted([*self._complete, *ended], key=self.score, reverse=True)
        return answers[: self._params.beam_width]

    def score(self, beam: Beam) -> float:
        """Return what answers are compared by; the token that ends one is not of its length."""
        num_tokens = len(beam.token_ids) - (beam.finish_reason is FinishReason.STOP)
        return self._normalised(beam.cum_logprob, max(1, num_tokens))

    def _is_decided(self) -> bool:
        """Whether no beam can become better than the answers there are."""
        if len(self._complete) < self._params.beam_width or not self._beams:
            return not self._beams
        # A log-probability only falls; what it is divided by is at most, or at least, this.
        is_rising = self._params.length_penalty > 0
        num_tokens = self._params.max_tokens if is_rising else self._round
        bound = self._normalised(self._beams[0].cum_logprob, max(1, num_tokens))
        return bound <= self.score(self._complete[-1])

    def _normalised(self, logprob: float, num_tokens: int) -> float:
        score: float = logprob / num_tokens**self._params.length_penalty
        return score


def run_searches(
    searches: Sequence[BeamSearch], run: Callable[[list[Request]], Iterable[TokenEvent]]
) -> None:
    """Run searches to their ends, each round of all of them together.

    run: yields the events of requests. Raises JaxserveError where one fails.
    """
    while rounds := [(search, found) for search in searches if (found := search.requests())]:
        reports: dict[str, PositionLogprobs] = {}
        for event in run([request for _, found in rounds for request in found]):
            if event.finish_reason is not FinishReason.LENGTH:
                raise JaxserveError(event.error or "a beam could not be continued")
            reports[event.request_id] = event.logprobs[0]
        for search, found in rounds:
            search.extend([reports[request.id] for request in found])
