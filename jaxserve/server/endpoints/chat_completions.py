"""POST /v1/chat/completions: what the assistant says next."""

from collections.abc import Sequence

from msgspec import UNSET
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from jaxserve.request import TokenEvent
from jaxserve.server.answering import AnswerWriter, make_job, respond
from jaxserve.server.generation import Collected, Job
from jaxserve.server.protocol.answers import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatMessage,
    Delta,
    Maybe,
    Timing,
    Usage,
)
from jaxserve.server.protocol.chat import ChatBody


async def create_chat_completion(http: HttpRequest) -> Response:
    """Answer a chat, whole or as a stream."""
    return await respond(http, ChatBody, ChatWriter)


async def chat_writer(http: HttpRequest, body: ChatBody) -> "ChatWriter":
    """Return what answers a chat, once it is rendered and checked.

    Raises InvalidRequestError for what the model cannot take.
    """
    return ChatWriter(await make_job(http, body), body)


class ChatWriter(AnswerWriter[ChatBody, ChatCompletion, ChatChunk]):
    """Writes one answer.

    In a stream each choice begins with a chunk of its role, sent with its first token, and ends
    with one of its finish_reason, whose delta is empty.
    """

    def __init__(self, job: Job, body: ChatBody) -> None:
        super().__init__(job, body, id_prefix="chatcmpl")
        self._begun: set[int] = set()

    def answer(
        self, choices: Sequence[Collected], usage: Usage, timing: Maybe[Timing]
    ) -> ChatCompletion:
        """See AnswerWriter."""
        answer = ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            system_fingerprint=self.fingerprint,
            choices=[self._choice(index, choice) for index, choice in enumerate(choices)],
            usage=usage,
            metrics=timing,
        )
        if self.body.return_token_ids:
            answer.prompt_token_ids = self.job.requests[0].prompt_ids
        if self.body.return_prompt_text:
            answer.prompt_text = self.prompt_texts[0]
        if self.body.prompt_logprobs is not None:
            answer.prompt_logprobs = self.logprobs.prompt(choices[0].prompt_logprobs or ())
        return answer

    def chunks_of(self, index: int, new: TokenEvent, usage: Maybe[Usage | None]) -> list[ChatChunk]:
        """See AnswerWriter."""
        chunks = []
        if index not in self._begun:
            self._begun.add(index)
            chunks.append(self._first_chunk(index, usage))
        return chunks + [self._chunk([choice], usage) for choice in self._chunk_choices(index, new)]

    def last_chunk(self, usage: Usage, timing: Maybe[Timing]) -> ChatChunk:
        """See AnswerWriter."""
        chunk = self._chunk([], usage)
        chunk.metrics = timing
        return chunk

    def _choice(self, index: int, choice: Collected) -> ChatChoice:
        body = self.body
        return ChatChoice(
            index=index,
            message=ChatMessage(body.echoed + choice.text),
            logprobs=self.logprobs.chat(choice.logprobs) if body.logprobs else None,
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            token_ids=choice.token_ids if body.return_token_ids else UNSET,
        )

    def _first_chunk(self, index: int, usage: Maybe[Usage | None]) -> ChatChunk:
        choice = ChatChunkChoice(index, Delta("assistant", self.body.echoed))
        chunk = self._chunk([choice], usage)
        if self.body.return_token_ids:
            chunk.prompt_token_ids = self.job.requests[0].prompt_ids
        if self.body.return_prompt_text:
            chunk.prompt_text = self.prompt_texts[0]
        return chunk

    def _chunk_choices(self, index: int, new: TokenEvent) -> list[ChatChunkChoice]:
        """Return what is new: the text, even if it is none yet, and the end apart from it."""
        body = self.body
        choices = []
        if new.text or (new.token_ids and (new.finish_reason is None or new.logprobs)):
            piece = ChatChunkChoice(index, Delta(content=new.text))
            if body.logprobs:
                piece.logprobs = self.logprobs.chat(new.logprobs)
            choices.append(piece)
        if new.finish_reason is not None:
            choices.append(
                ChatChunkChoice(
                    index, Delta(), finish_reason=new.finish_reason, stop_reason=new.stop_reason
                )
            )
        if body.return_token_ids and choices:
            choices[0].token_ids = new.token_ids
        return choices

    def _chunk(self, choices: list[ChatChunkChoice], usage: Maybe[Usage | None]) -> ChatChunk:
        return ChatChunk(
            id=self.id,
            created=self.created,
            model=self.model,
            system_fingerprint=self.fingerprint,
            choices=choices,
            usage=usage,
        )
