"""Handler of POST /v1/chat/completions."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from msgspec import UNSET
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from jaxserve.api.request import FinishReason, TokenEvent
from jaxserve.chat.pieces import Kind, Piece
from jaxserve.frontend.response_parser import ResponseParser
from jaxserve.server.chat.schema import ChatBody
from jaxserve.server.generation.events import Collected, Job, Tally
from jaxserve.server.generation.handler import AnswerWriter, make_job, respond
from jaxserve.server.schema.answers import (
    CalledCustomTool,
    CalledFunction,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatMessage,
    CustomToolCall,
    CustomToolDelta,
    Delta,
    FunctionDelta,
    Maybe,
    Timing,
    ToolCall,
    ToolCallDelta,
    Usage,
)


async def create_chat_completion(http: HttpRequest) -> Response:
    """Answer a chat, whole or as a stream."""
    return await respond(http, ChatBody, ChatWriter)


async def chat_writer(http: HttpRequest, body: ChatBody) -> "ChatWriter":
    """Render and check a chat, and return the writer of its answer.

    Raises InvalidRequestError for a chat that the model cannot answer.
    """
    return ChatWriter(await make_job(http, body), body)


class ChatWriter(AnswerWriter[ChatBody, ChatCompletion, ChatChunk]):
    """Writer of one answer.

    In a stream, each choice begins with a chunk with its role, sent with its first token, and ends
    with a chunk with its finish_reason and an empty delta.
    """

    def __init__(self, job: Job, body: ChatBody) -> None:
        super().__init__(job, body, id_prefix="chatcmpl")
        self._parsing = body.parser_config(job.model, job.requests[0].prompt_ids)
        self._parsers: dict[int, ResponseParser] = {}
        # Names that each choice has called.
        self._called: defaultdict[int, list[str]] = defaultdict(list)

    def tally(self) -> Tally:
        """See AnswerWriter."""
        return Tally(
            self.job.requests,
            counts_output=not self.body.only_scores,
            reasoning=self._parsing.token_counter(self.job.model.tokenizer),
        )

    def answer(
        self, choices: Sequence[Collected], usage: Usage, timing: Maybe[Timing]
    ) -> ChatCompletion:
        """See AnswerWriter."""
        answer = ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            system_fingerprint=self.fingerprint,
            choices=[self.choice(index, choice) for index, choice in enumerate(choices)],
            usage=usage,
            metrics=None if timing is UNSET else timing,
        )
        if self.body.return_token_ids:
            answer.prompt_token_ids = self.job.requests[0].prompt_ids
        if self.body.return_prompt_text:
            answer.prompt_text = self.prompt_texts[0]
        if self.body.prompt_logprobs is not None:
            answer.prompt_logprobs = self.logprobs.prompt(choices[0].prompt_logprobs or ())
        return answer

    def opening(self, index: int) -> list[ChatChunk]:
        """See AnswerWriter."""
        if index in self._parsers:
            return []
        self._parsers[index] = self._parsing.parser()
        body = self.body
        choice = ChatChunkChoice(index, Delta("assistant", body.echoed))
        if body.return_token_ids:
            choice.token_ids = UNSET
        chunk = self._chunk([choice])
        chunk.prompt_token_ids = self.job.requests[0].prompt_ids if body.return_token_ids else None
        chunk.prompt_text = self.prompt_texts[0] if body.return_prompt_text else None
        return [chunk]

    def chunks_of(self, index: int, new: TokenEvent) -> list[ChatChunk]:
        """See AnswerWriter."""
        return [self._chunk([choice]) for choice in self._chunk_choices(index, new)]

    def last_chunk(self, usage: Usage, timing: Maybe[Timing]) -> ChatChunk:
        """See AnswerWriter."""
        chunk = self._chunk([])
        chunk.usage, chunk.metrics = usage, timing
        return chunk

    def choice(self, index: int, choice: Collected) -> ChatChoice:
        """Return one choice of the answer."""
        body = self.body
        parser = self._parsing.parser()
        return ChatChoice(
            index=index,
            message=self._message(parser.feed(choice.text, is_last=True)),
            logprobs=self.logprobs.chat(choice.logprobs) if body.logprobs else None,
            finish_reason=_finish_reason(choice.finish_reason, parser),
            stop_reason=choice.stop_reason,
            token_ids=choice.token_ids if body.return_token_ids else None,
        )

    def _message(self, pieces: Iterable[Piece]) -> ChatMessage:
        """Return the message that consists of all pieces of an answer."""
        texts: dict[Kind, list[str]] = {kind: [] for kind in Kind}
        texts[Kind.CONTENT].append(self.body.echoed)
        calls: list[ToolCall | CustomToolCall] = []
        for kind, text, call_id in pieces:
            if kind is Kind.CALL:
                if text in self._parsing.custom_tools:
                    calls.append(CustomToolCall(call_id, CalledCustomTool(text, "")))
                else:
                    calls.append(ToolCall(call_id, CalledFunction(text, "")))
            elif kind is Kind.ARGUMENTS:
                match calls[-1]:
                    case ToolCall(function=function):
                        function.arguments += text
                    case CustomToolCall(custom=custom):
                        custom.input += text
            else:
                texts[kind].append(text)
        content, reasoning = "".join(texts[Kind.CONTENT]), "".join(texts[Kind.REASONING])
        message = ChatMessage(content if content or not (calls or reasoning) else None)
        if reasoning:
            message.reasoning = message.reasoning_content = reasoning
        if calls:
            message.tool_calls = calls
        return message

    def _chunk_choices(self, index: int, new: TokenEvent) -> list[ChatChunkChoice]:
        """Return the new pieces of a choice, and its end separately.

        New tokens without text yet give an empty piece if the text is not parsed.
        """
        body, parser = self.body, self._parsers[index]
        pieces = parser.feed(new.text, is_last=new.finish_reason is not None)
        choices = [ChatChunkChoice(index, self._delta(index, piece)) for piece in pieces]
        tells_tokens = self._parsing.is_plain and new.finish_reason is None
        if not choices and new.token_ids and (tells_tokens or new.logprobs):
            choices.append(ChatChunkChoice(index, Delta(content="")))
        if body.logprobs and choices:
            choices[0].logprobs = self.logprobs.chat(new.logprobs)
        if new.finish_reason is not None:
            choices.append(
                ChatChunkChoice(
                    index,
                    Delta(),
                    finish_reason=_finish_reason(new.finish_reason, parser),
                    stop_reason=new.stop_reason,
                )
            )
        if body.return_token_ids:
            if new.token_ids and not choices:
                choices.append(ChatChunkChoice(index, Delta(content="")))
            for place, choice in enumerate(choices):
                choice.token_ids = UNSET if place or not new.token_ids else new.token_ids
        return choices

    def _delta(self, index: int, piece: Piece) -> Delta:
        match piece.kind:
            case Kind.CONTENT:
                return Delta(content=piece.text)
            case Kind.REASONING:
                return Delta(reasoning=piece.text, reasoning_content=piece.text)
            case Kind.CALL:
                self._called[index].append(piece.text)
                return Delta(tool_calls=[self._call_delta(index, piece.call_id, piece.text, "")])
            case Kind.ARGUMENTS:
                return Delta(tool_calls=[self._call_delta(index, UNSET, UNSET, piece.text)])

    def _call_delta(
        self, index: int, call_id: Maybe[str], name: Maybe[str], text: str
    ) -> ToolCallDelta:
        """Return an addition to the last call of a choice; its type comes with its id."""
        called = self._called[index]
        call = ToolCallDelta(len(called) - 1, call_id)
        if called[-1] in self._parsing.custom_tools:
            call.custom, kind = CustomToolDelta(name, text), "custom"
        else:
            call.function, kind = FunctionDelta(name, text), "function"
        call.type = UNSET if call_id is UNSET else kind
        return call

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return ChatChunk(
            id=self.id,
            created=self.created,
            model=self.model,
            system_fingerprint=self.fingerprint,
            choices=choices,
        )


def _finish_reason(reason: FinishReason, parser: ResponseParser) -> str:
    """Return OpenAI's finish reason: "tool_calls" if the answer stopped after complete calls."""
    return "tool_calls" if parser.has_whole_call and reason is FinishReason.STOP else reason
