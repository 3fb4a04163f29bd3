"""Handler of POST /v1/completions."""

from collections.abc import Sequence
from typing import override

from msgspec import UNSET
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from jaxserve.api.request import PositionLogprobs, TokenEvent
from jaxserve.server.completions.schema import CompletionBody
from jaxserve.server.generation.events import Collected, Job
from jaxserve.server.generation.handler import AnswerWriter, respond
from jaxserve.server.generation.logprobs import TextOffsets
from jaxserve.server.schema.answers import Completion, CompletionChoice, Maybe, Timing, Usage


async def create_completion(http: HttpRequest) -> Response:
    """Answer with the continuations of prompts, whole or as a stream."""
    return await respond(http, CompletionBody, CompletionWriter)


class CompletionWriter(AnswerWriter[CompletionBody, Completion, Completion]):
    """Writer of one answer."""

    def __init__(self, job: Job, body: CompletionBody) -> None:
        super().__init__(job, body, id_prefix="cmpl")
        self._tokenizer = job.model.tokenizer
        # By index, for choices that have started.
        self._offsets: dict[int, TextOffsets] = {}

    def answer(
        self, choices: Sequence[Collected], usage: Usage, timing: Maybe[Timing]
    ) -> Completion:
        """See AnswerWriter."""
        answer = self._completion(
            [self._choice(index, choice) for index, choice in enumerate(choices)],
            usage,
            None if timing is UNSET else timing,
        )
        answer.service_tier = answer.kv_transfer_params = None
        return answer

    @override
    def opening(self, index: int) -> list[Completion]:
        """See AnswerWriter."""
        return []

    def chunks_of(self, index: int, new: TokenEvent) -> list[Completion]:
        """See AnswerWriter."""
        return [self._completion([self._choice(index, new)])]

    def last_chunk(self, usage: Usage, timing: Maybe[Timing]) -> Completion:
        """See AnswerWriter."""
        return self._completion([], usage, timing)

    def _completion(
        self,
        choices: list[CompletionChoice],
        usage: Maybe[Usage | None] = UNSET,
        timing: Maybe[Timing | None] = UNSET,
    ) -> Completion:
        return Completion(
            id=self.id,
            created=self.created,
            model=self.model,
            system_fingerprint=self.fingerprint,
            choices=choices,
            usage=usage,
            metrics=timing,
        )

    def _choice(self, index: int, new: TokenEvent | Collected) -> CompletionChoice:
        """Return a choice: a complete one, or the next piece in a stream."""
        body = self.body
        is_first = index not in self._offsets
        place = self._offsets.setdefault(
            index, TextOffsets(self._tokenizer, skips_special=body.skip_special_tokens)
        )
        prompt = body.prompt[index // self.job.n]
        prompt_ids = self.job.requests[index // self.job.n].prompt_ids
        offsets: list[int] = []
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
            choice.prompt_token_ids = prompt_ids if is_first else None
        if body.prompt_logprobs is not None:
            choice.prompt_logprobs = self.logprobs.prompt(new.prompt_logprobs or ())
        elif isinstance(new, Collected):
            choice.prompt_logprobs = None
        if body.return_prompt_text and is_first:
            choice.prompt_text = self.prompt_texts[index // self.job.n]
        if body.echo and is_first:
            if isinstance(prompt, str) and body.truncate_prompt_tokens is None:
                echoed = prompt
            else:
                echoed = self._tokenizer.decode(prompt_ids)
            choice.text = echoed + text
            offsets = place.of_prompt(prompt_ids, echoed)
            positions = [None, *(new.prompt_logprobs or ()), *positions]
        if body.logprobs is not None:
            offsets += place.of_answer(token_ids)
            if body.echo and is_first:
                token_ids = [*prompt_ids, *token_ids]
            choice.logprobs = self.logprobs.completion(positions, token_ids, offsets)
        return choice
