"""Outputs of offline generation: a `RequestOutput` per prompt, with vLLM's names and shapes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self, overload

from jaxserve.api.request import (
    FinishReason,
    PositionLogprobs,
    Request,
    RequestMetrics,
    TokenEvent,
    whole_time,
)
from jaxserve.frontend.beam_search import BeamSearch, BeamSearchParams
from jaxserve.tokenization.tokenizer import Tokenizer

type TokenLogprobs = dict[int, Logprob]


@dataclass(frozen=True, slots=True)
class Logprob:
    """Log-probability of a token, its rank (1 is the most likely), and its text."""

    logprob: float
    rank: int | None
    decoded_token: str


@dataclass(frozen=True, slots=True)
class FlatLogprobs(Sequence[TokenLogprobs]):
    """Log-probabilities as flat lists, which take a fraction of the memory of dictionaries.

    Position i has the range [start_indices[i], end_indices[i]) of the other lists, the sampled
    token first. Indexing returns the dictionary of a position.
    """

    start_indices: list[int] = field(default_factory=list[int])
    end_indices: list[int] = field(default_factory=list[int])
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    ranks: list[int | None] = field(default_factory=list[int | None])
    decoded_tokens: list[str] = field(default_factory=list[str])

    @classmethod
    def of(cls, positions: Iterable[TokenLogprobs | None]) -> Self:
        """Return the log-probabilities of positions; None is a position without any."""
        flat = cls()
        for found in positions:
            flat.start_indices.append(len(flat.token_ids))
            for token_id, entry in (found or {}).items():
                flat.token_ids.append(token_id)
                flat.logprobs.append(entry.logprob)
                flat.ranks.append(entry.rank)
                flat.decoded_tokens.append(entry.decoded_token)
            flat.end_indices.append(len(flat.token_ids))
        return flat

    def __len__(self) -> int:
        return len(self.start_indices)

    @overload
    def __getitem__(self, index: int) -> TokenLogprobs: ...

    @overload
    def __getitem__(self, index: slice) -> "list[TokenLogprobs]": ...

    def __getitem__(self, index: int | slice) -> "TokenLogprobs | list[TokenLogprobs]":
        if isinstance(index, slice):
            return [self[position] for position in range(len(self))[index]]
        places = range(self.start_indices[index], self.end_indices[index])
        return {
            self.token_ids[place]: Logprob(
                self.logprobs[place], self.ranks[place], self.decoded_tokens[place]
            )
            for place in places
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOutput:
    """One answer. logprobs: by token id, for each token of token_ids, if they were asked for.

    finish_reason: "stop", "length", "repetition", "abort" or "error"; stop_reason: the stop string
    or stop token id that matched.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: Sequence[TokenLogprobs] | None
    finish_reason: str | None
    stop_reason: int | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """A prompt and its answers, in the order of their index.

    prompt: None for a prompt given as token ids. prompt_logprobs: one entry per prompt token, of
    which the first is None. num_cached_tokens: prompt tokens that were not computed again.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: Sequence[TokenLogprobs | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics | None
    num_cached_tokens: int


@dataclass(slots=True)
class _Choice:
    """State of one answer."""

    text: list[str] = field(default_factory=list[str])
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[PositionLogprobs] = field(default_factory=list[PositionLogprobs])
    last: TokenEvent | None = None


class OutputBuilder:
    """Collects the events of one request into its output."""

    def __init__(self, request: Request, *, prompt: str | None, tokenizer: Tokenizer) -> None:
        self._request = request
        self._prompt = prompt
        self._tokenizer = tokenizer
        self._choices = [_Choice() for _ in range(request.params.n)]
        self._prompt_logprobs: Sequence[TokenLogprobs | None] | None = None
        self._num_cached_tokens = 0

    def add(self, event: TokenEvent) -> None:
        """Add one event of the request."""
        choice = self._choices[event.index]
        choice.text.append(event.text)
        choice.token_ids += event.token_ids
        choice.logprobs += event.logprobs
        if event.finish_reason is not None:
            choice.last = event
        if event.prompt_logprobs is not None:
            found = self._logprobs(event.prompt_logprobs)
            self._prompt_logprobs = self._told([None, *found])
        self._num_cached_tokens = max(self._num_cached_tokens, event.num_cached_tokens)

    def build(self) -> RequestOutput:
        """Return the output so far; it is `finished` once every answer has ended."""
        ends = [choice.last for choice in self._choices if choice.last is not None]
        times = [end.metrics for end in ends if end.metrics is not None]
        return RequestOutput(
            request_id=self._request.id,
            prompt=self._prompt,
            prompt_token_ids=list(self._request.prompt_ids),
            prompt_logprobs=self._prompt_logprobs,
            outputs=[self._completion(index) for index in range(len(self._choices))],
            finished=len(ends) == len(self._choices),
            metrics=whole_time(times),
            num_cached_tokens=self._num_cached_tokens,
        )

    def _completion(self, index: int) -> CompletionOutput:
        choice = self._choices[index]
        has_logprobs = self._request.params.logprobs is not None
        end = choice.last
        return CompletionOutput(
            index=index,
            text="".join(choice.text),
            token_ids=list(choice.token_ids),
            cumulative_logprob=sum(position.chosen.logprob for position in choice.logprobs)
            if has_logprobs
            else None,
            logprobs=self._told(self._logprobs(choice.logprobs)) if has_logprobs else None,
            finish_reason=None if end is None else str(end.finish_reason),
            stop_reason=None if end is None else end.stop_reason,
        )

    def _logprobs(self, positions: Iterable[PositionLogprobs]) -> list[TokenLogprobs]:
        return [token_logprobs(position, self._tokenizer) for position in positions]

    def _told[T: TokenLogprobs | None](self, found: list[T]) -> Sequence[T | TokenLogprobs]:
        return FlatLogprobs.of(found) if self._request.params.flat_logprobs else found


def token_logprobs(position: PositionLogprobs, tokenizer: Tokenizer) -> TokenLogprobs:
    """Return the sampled token first, then the alternatives, which may include it."""
    found: TokenLogprobs = {}
    for token in (position.chosen, *position.top):
        text = tokenizer.token_text(token.token_id)
        # Keep the first entry of a token: it has the rank, unlike one requested by token id.
        found.setdefault(token.token_id, Logprob(token.logprob, token.rank, text))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearchSequence:
    """One sequence of a beam search. tokens and text begin with the prompt.

    logprobs: of the answer's tokens. cum_logprob: their sum.
    """

    tokens: list[int]
    logprobs: list[TokenLogprobs]
    cum_logprob: float
    text: str
    finish_reason: str
    stop_reason: int | None


@dataclass(frozen=True, slots=True)
class BeamSearchOutput:
    """Sequences of a beam search, best first."""

    sequences: list[BeamSearchSequence]


def beam_output(
    search: BeamSearch, params: BeamSearchParams, request: Request, tokenizer: Tokenizer
) -> BeamSearchOutput:
    """Return the output of a search."""
    sequences = []
    for beam in search.best():
        answer = beam.token_ids
        if beam.finish_reason is FinishReason.STOP and not params.include_stop_str_in_output:
            answer = answer[:-1]
        tokens = [*request.prompt_ids, *answer]
        sequences.append(
            BeamSearchSequence(
                tokens=tokens,
                logprobs=[token_logprobs(position, tokenizer) for position in beam.logprobs],
                cum_logprob=beam.cum_logprob,
                text=tokenizer.decode(tokens),
                finish_reason=str(beam.finish_reason),
                stop_reason=beam.stop_reason,
            )
        )
    return BeamSearchOutput(sequences)
