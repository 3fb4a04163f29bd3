"""POST /v1/completions: texts that continue prompts."""

from collections.abc import Sequence

from msgspec import UNSET
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from jaxserve.request import PositionLogprobs, TokenEvent
from jaxserve.server.answering import AnswerWriter, respond
from jaxserve.server.generation import Collected, Job
from jaxserve.server.protocol.answers import Completion, CompletionChoice, Maybe, Usage
from jaxserve.server.protocol.completions import CompletionBody


async def create_completion(http: HttpRequest) -> Response:
    """Answer with texts, whole or as a stream."""
    return await respond(http, CompletionBody, CompletionWriter)


class CompletionWriter(AnswerWriter[CompletionBody, Completion, Completion]):
    """Writes one answer."""

    def __init__(self, job: Job, body: CompletionBody) -> None:
        super().__init__(job, body, id_prefix="cmpl")
        self._tokenizer = job.model.tokenizer
        # Characters told of so far, of each choice that has begun.
        self._offsets: dict[int, int] = {}

    def answer(self, choices: Sequence[Collected], usage: Usage) -> Completion:
        """See AnswerWriter."""
        return self._completion(
            [self._choice(index, choice) for index, choice in enumerate(choices)], usage
        )

    def chunks_of(
        self, index: int, new: TokenEvent, usage: Maybe[Usage | None]
    ) -> list[Completion]:
        """See AnswerWriter."""
        return [self._completion([self._choice(index, new)], usage)]

    def last_chunk(self, usage: Usage) -> Completion:
        """See AnswerWriter."""
        return self._completion([], usage)

    def _completion(
        self, choices: list[CompletionChoice], usage: Maybe[Usage | None]
    ) -> Completion:
        return Completion(
            id=self.id,
            created=self.created,
            model=self.model,
            system_fingerprint=self.fingerprint,
            choices=choices,
            usage=usage,
        )

    def _choice(self, index: int, new: TokenEvent | Collected) -> CompletionChoice:
        """Return what is new of a choice: a whole one, or a stream's next piece of it."""
        body = self.body
        is_first = index not in self._offsets
        offset = self._offsets.setdefault(index, 0)
        prompt = body.prompt[index // self.job.n]
        prompt_ids = self.job.requests[index // self.job.n].prompt_ids
        text, token_ids = new.text, [*new.token_ids]
        positions: list[PositionLogprobs | None] = [*new.logprobs]
        if body.only_scores:
            text, token_ids, positions = "", [], []
        choice = CompletionChoice(
            index=index,
            text=text,
            logprobs=None,
            finish_reason=new.finish_reason,
            stop_reason=new.stop_reason,
        )
        if body.return_token_ids:
            choice.token_ids = token_ids
            choice.prompt_token_ids = prompt_ids if is_first else UNSET
        if body.prompt_logprobs is not None:
            choice.prompt_logprobs = self.logprobs.prompt(new.prompt_logprobs or ())
        if body.echo and is_first:
            echoed = prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt)
            choice.text = echoed + text
            token_ids = [*prompt_ids, *token_ids]
            positions = [None, *(new.prompt_logprobs or ()), *positions]
        if body.logprobs is not None:
            choice.logprobs = self.logprobs.completion(positions, token_ids, offset=offset)
            self._offsets[index] += sum(map(len, map(self._tokenizer.token_text, token_ids)))
        return choice
