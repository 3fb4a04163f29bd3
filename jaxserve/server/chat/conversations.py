"""Handler of POST /v1/chat/completions/batch: several chats in one request."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Literal

from msgspec import UNSET
from pydantic import FailFast, Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.chat import ChatOptions, Messages
from jaxserve.server.chat.handler import ChatWriter, chat_writer
from jaxserve.server.chat.schema import ChatBody, ChatGeneration
from jaxserve.server.completions.schema import MAX_CHOICES
from jaxserve.server.generation.events import Collected
from jaxserve.server.http.answer import json_response
from jaxserve.server.http.bodies import read_as
from jaxserve.server.http.disconnect import unless_disconnected
from jaxserve.server.schema.answers import ChatChoice, ChatCompletion, Maybe, Timing, Usage
from jaxserve.server.state import server_state


class ConversationsBody(ChatOptions, ChatGeneration):
    """Chats to continue. Each gives one choice of the answer."""

    messages: Annotated[list[Messages], FailFast(), Field(min_length=1, max_length=MAX_CHOICES)]
    n: Literal[1] = 1
    stream: Literal[False] = False
    use_beam_search: Literal[False] = False
    prompt_logprobs: None = None
    return_prompt_text: Literal[False] = False

    def chats(self) -> list[ChatBody]:
        """Return the chats as separate bodies."""
        shared = dict(self)
        return [ChatBody.model_construct(**shared | {"messages": m}) for m in self.messages]


async def create_chat_completions(http: HttpRequest) -> Response:
    """Answer several chats at once, with one choice for each."""
    body = await read_as(http, ConversationsBody)
    model = server_state(http).router.model(body.model)
    model.check_num_prompts(len(body.messages), param="messages")
    writers: list[ChatWriter] = []
    for index, chat in enumerate(body.chats()):
        with _placed(f"messages[{index}]"):
            writers.append(await chat_writer(http, chat))
    answer = ConversationsWriter(writers)
    return json_response(await unless_disconnected(http, answer.whole()))


class ConversationsWriter(ChatWriter):
    """Writer of one answer with the choices of several chats, given a writer for each.

    The chats share one job, so that they are admitted, counted and logged as one request.
    """

    def __init__(self, writers: Sequence[ChatWriter]) -> None:
        first = writers[0]
        requests = tuple(request for writer in writers for request in writer.job.requests)
        super().__init__(replace(first.job, requests=requests), first.body)
        self._writers = writers

    def answer(
        self, choices: Sequence[Collected], usage: Usage, timing: Maybe[Timing]
    ) -> ChatCompletion:
        """See AnswerWriter. The answer has room for one prompt only, so it has none."""
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            system_fingerprint=self.fingerprint,
            choices=[self.choice(index, choice) for index, choice in enumerate(choices)],
            usage=usage,
            metrics=None if timing is UNSET else timing,
        )

    def choice(self, index: int, choice: Collected) -> ChatChoice:
        """See ChatWriter."""
        return self._writers[index].choice(index, choice)


@contextmanager
def _placed(place: str) -> Iterator[None]:
    """Add the index of the chat to the parameter of errors."""
    try:
        yield
    except InvalidRequestError as error:
        if error.param is not None and error.param.startswith("messages"):
            error.param = place + error.param.removeprefix("messages")
            error.message = error.message.replace("messages", place, 1)
        raise
