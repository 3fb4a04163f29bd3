"""Beam search on top of the engine.

Each round sends one request per beam, for one token, and continues the most likely beams. The next
round finds the KV pages of the previous one in the prefix cache.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from jaxserve.api.limits import Limits, show
from jaxserve.api.request import FinishReason, PositionLogprobs, Request, TokenEvent
from jaxserve.api.sampling_params import LIMITS, SamplingParams
from jaxserve.errors import InvalidRequestError, JaxserveError

LENGTH_PENALTY_LIMITS = Limits(-10.0, 10.0)
# Beam search does not sample, so these two are equivalent.
TEMPERATURES = (0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearchParams:
    """Parameters of a beam search, named as in vLLM. Raises InvalidRequestError.

    beam_width: number of answers, and of beams continued per round. length_penalty: the score of an
    answer is its log-probability divided by its length to this power; values above 0 favour longer
    answers. temperature: 0 or 1; either way the model's own log-probabilities are compared.
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
                f"temperature must be 0 or 1 with beam search, which does not sample,"
                f" got {show(self.temperature)}",
                param="temperature",
            )


def check_search(
    beam_width: int, *, max_logprobs: int, logprobs_mode: str, param: str = "beam_width"
) -> None:
    """Raise InvalidRequestError unless the engine reports the log-probabilities of a search.

    max_logprobs, logprobs_mode: settings of the engine. param: name of the beam width.
    """
    if 2 * beam_width > max_logprobs:
        raise InvalidRequestError(
            f"{param} must be at most {max_logprobs // 2} with beam search, half of max_logprobs,"
            f" got {beam_width}",
            param=param,
        )
    if not logprobs_mode.endswith("logprobs"):
        raise InvalidRequestError(
            f"beam search needs log-probabilities, which logprobs_mode {logprobs_mode} does not"
            " return",
            param=param,
        )


@dataclass(frozen=True, slots=True)
class Beam:
    """An answer, complete or not. logprobs: one per token id."""

    token_ids: tuple[int, ...] = ()
    cum_logprob: float = 0.0
    logprobs: tuple[PositionLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None


class BeamSearch:
    """A single search. Run `requests()` and pass their results to `extend` until there are none.

    request: the prompt, and the number of log-probabilities to report. eos_ids: tokens that end an
    answer, in addition to the request's stop tokens.
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
        # Number of alternatives to report; None for the whole vocabulary.
        self._num_top = None if asked == -1 else asked
        self._one_token = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            ignore_eos=True,
            detokenize=False,
            logprobs=-1 if asked == -1 else max(wanted, asked),
        )

    def requests(self) -> list[Request]:
        """Return the requests of the next round, one per beam; empty when the search is over."""
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
        """Extend each beam by its most likely tokens, and keep the best beams.

        positions: the log-probabilities of each beam's next token, in the order of `requests`.
        """
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
        """Return the `beam_width` best answers, best first."""
        ended = [replace(beam, finish_reason=FinishReason.LENGTH) for beam in self._beams]
        answers = sorted([*self._complete, *ended], key=self.score, reverse=True)
        return answers[: self._params.beam_width]

    def score(self, beam: Beam) -> float:
        """Return the score of an answer. Its length does not include the token that ends it."""
        num_tokens = len(beam.token_ids) - (beam.finish_reason is FinishReason.STOP)
        return self._normalised(beam.cum_logprob, max(1, num_tokens))

    def _is_decided(self) -> bool:
        """Whether no beam can still beat the complete answers."""
        if len(self._complete) < self._params.beam_width or not self._beams:
            return not self._beams
        # A log-probability can only fall, so this is an upper bound on the score of any beam.
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
    """Run several searches to completion, batching their rounds.

    run: runs requests and yields their events. Raises JaxserveError if a request fails.
    """
    while rounds := [(search, found) for search in searches if (found := search.requests())]:
        reports: dict[str, PositionLogprobs] = {}
        for event in run([request for _, found in rounds for request in found]):
            if event.finish_reason is not FinishReason.LENGTH:
                raise JaxserveError(event.error or "a request of the beam search failed")
            reports[event.request_id] = event.logprobs[0]
        for search, found in rounds:
            search.extend([reports[request.id] for request in found])
