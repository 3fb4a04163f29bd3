"""Writer of responses: builds items and events from the pieces of a chat's answer."""

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from msgspec import UNSET
from msgspec.structs import replace

from jaxserve.chat.syntax.json_value import is_object
from jaxserve.errors import InvalidRequestError, JaxserveError
from jaxserve.frontend.tools import text_of
from jaxserve.server.chat.pieces import Arguments, Call, ChatAnswer, End, Piece, Reasoning, Text
from jaxserve.server.errors import describe
from jaxserve.server.responses.answers import (
    ArgumentsDelta,
    ArgumentsDone,
    CustomToolCallOut,
    Event,
    FunctionCallOut,
    IncompleteDetails,
    InputDelta,
    InputDone,
    InputTokensDetails,
    ItemAdded,
    ItemDone,
    ItemOut,
    MessageOut,
    OutputText,
    OutputTokensDetails,
    PartAdded,
    PartDone,
    RawMessage,
    ReasoningDelta,
    ReasoningDone,
    ReasoningOut,
    ReasoningText,
    Response,
    ResponseCompleted,
    ResponseCreated,
    ResponseError,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseUsage,
    TextDelta,
    TextDone,
)
from jaxserve.server.responses.items import item_id
from jaxserve.server.responses.tools import Target
from jaxserve.server.schema.answers import TokenLogprob


class ResponseWriter:
    """Writer of one response, which starts as `response`.

    targets: tools by the chat's function names. tells_messages: whether the complete response has
    the prompt and the answer as text and tokens. failure: error that ended the stream, if any.
    """

    def __init__(
        self,
        answer: ChatAnswer,
        response: Response,
        targets: Mapping[str, Target] | None = None,
        *,
        tells_messages: bool = False,
    ) -> None:
        self._answer = answer
        self._targets = targets or {}
        self._tells_messages = tells_messages
        self.response = response
        self.failure: JaxserveError | None = None
        self._num_events = 0
        # The current item, its text so far, and the log-probabilities of that text.
        self._item: ItemOut | None = None
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []

    async def events(self) -> AsyncGenerator[list[Event]]:
        """Yield the events of each step; the last event tells how the response ended.

        Errors before the first event are raised; later errors end the response with
        `response.failed`.
        """
        try:
            async with aclosing(self._answer.pieces()) as steps:
                async for pieces in steps:
                    events = [] if self._num_events else self._start()
                    for piece in pieces:
                        events += self._read(piece)
                    yield events
        except JaxserveError as error:
            if self._num_events == 0:
                raise
            self.failure = error
            self.response.status = "failed"
            self.response.error = response_error(error)
            yield [self._count(ResponseFailed(response=self.response))]
            return
        yield [self._end()]

    def _start(self) -> list[Event]:
        begun = replace(self.response, output=[])
        return [
            self._count(ResponseCreated(response=begun)),
            self._count(ResponseInProgress(response=begun)),
        ]

    def _end(self) -> Event:
        response, usage = self.response, self._answer.usage
        response.usage = ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(self._answer.reasoning_tokens),
            total_tokens=usage.total_tokens,
        )
        if self._tells_messages:
            response.input_messages = [self._message(self._answer.prompt_ids)]
            response.output_messages = [self._message(self._answer.token_ids)]
        if response.incomplete_details is not None:
            response.status = "incomplete"
            return self._count(ResponseIncomplete(response=response))
        response.status = "completed"
        response.completed_at = int(time.time())
        return self._count(ResponseCompleted(response=response))

    def _message(self, token_ids: Sequence[int]) -> RawMessage:
        return RawMessage(self._answer.decode(token_ids), token_ids)

    def _read(self, piece: Piece) -> list[Event]:
        match piece:
            case Text(text, logprobs):
                return [*self._open(MessageOut(id=self._id("message"))), *self._add(text, logprobs)]
            case Reasoning(text):
                return [*self._open(ReasoningOut(id=self._id("reasoning"))), *self._add(text)]
            case Call(call_id, name):
                call = self._call(call_id, self._targets.get(name, Target(name)))
                return [*self._close("completed"), *self._open(call)]
            case Arguments(text):
                return self._add(text)
            case End(reason, _):
                if reason == "length":
                    self.response.incomplete_details = IncompleteDetails("max_output_tokens")
                is_whole = reason != "length"
                if isinstance(self._item, FunctionCallOut | CustomToolCallOut):
                    # An answer may end inside a call, or be truncated after one.
                    is_whole = is_object("".join(self._texts))
                return self._close("completed" if is_whole else "incomplete")

    def _id(self, kind: str) -> str:
        """Return the id of a new item after the current one."""
        index = len(self.response.output) + (self._item is not None)
        return item_id(kind, self.response.id, index)

    def _call(self, call_id: str, target: Target) -> FunctionCallOut | CustomToolCallOut:
        """Return the item of a call, as a function or a custom tool."""
        namespace = UNSET if target.namespace is None else target.namespace
        if target.is_custom:
            return CustomToolCallOut(
                id=self._id("custom_tool_call"),
                call_id=call_id,
                name=target.name,
                namespace=namespace,
            )
        return FunctionCallOut(
            id=self._id("function_call"), call_id=call_id, name=target.name, namespace=namespace
        )

    def _open(self, item: ItemOut) -> list[Event]:
        """Begin an item, unless the current one has the same kind."""
        if type(item) is type(self._item):
            return []
        events = self._close("completed")
        self._item = item
        index = len(self.response.output)
        events.append(self._count(ItemAdded(output_index=index, item=replace(item))))
        part = _part_of(item)
        if part is not None:
            added = PartAdded(item_id=item.id, output_index=index, part=part)
            events.append(self._count(added))
        return events

    def _add(self, text: str, logprobs: list[TokenLogprob] | None = None) -> list[Event]:
        """Add to the current item."""
        item, index = self._item, len(self.response.output)
        self._texts.append(text)
        self._logprobs += logprobs or ()
        if not text and not logprobs:
            return []
        event: Event
        match item:
            case MessageOut():
                event = TextDelta(
                    item_id=item.id, output_index=index, delta=text, logprobs=logprobs or []
                )
            case ReasoningOut():
                event = ReasoningDelta(item_id=item.id, output_index=index, delta=text)
            case FunctionCallOut():
                event = ArgumentsDelta(item_id=item.id, output_index=index, delta=text)
            case CustomToolCallOut():
                # The text of a custom tool is known once the arguments are complete.
                return []
            case None:
                raise AssertionError("nothing grows")
        return [self._count(event)]

    def _close(self, status: str) -> list[Event]:
        """End the current item, if there is one."""
        item, index = self._item, len(self.response.output)
        if item is None:
            return []
        text, logprobs = "".join(self._texts), self._logprobs
        self._item, self._texts, self._logprobs = None, [], []
        events: list[Event] = []
        part: OutputText | ReasoningText | None = None
        match item:
            case MessageOut():
                part = OutputText(text, logprobs=logprobs)
                item.content = [part]
                events.append(
                    TextDone(item_id=item.id, output_index=index, text=text, logprobs=logprobs)
                )
            case ReasoningOut():
                part = ReasoningText(text)
                item.content = [part]
                events.append(ReasoningDone(item_id=item.id, output_index=index, text=text))
            case FunctionCallOut():
                item.arguments = text
                events.append(
                    ArgumentsDone(
                        item_id=item.id, output_index=index, name=item.name, arguments=text
                    )
                )
            case CustomToolCallOut():
                item.input = text_of(text)
                events += [
                    InputDelta(item_id=item.id, output_index=index, delta=item.input),
                    InputDone(item_id=item.id, output_index=index, input=item.input),
                ]
        if part is not None:
            events.append(PartDone(item_id=item.id, output_index=index, part=part))
        item.status = status
        self.response.output.append(item)
        events.append(ItemDone(output_index=index, item=item))
        return [self._count(event) for event in events]

    def _count[E: Event](self, event: E) -> E:
        """Set an event's sequence number."""
        event.sequence_number = self._num_events
        self._num_events += 1
        return event


def response_error(error: Exception) -> ResponseError:
    """Return the error of a response that has started, with one of OpenAI's codes."""
    code = "invalid_prompt" if isinstance(error, InvalidRequestError) else "server_error"
    return ResponseError(code, describe(error)[1].message)


def _part_of(item: ItemOut) -> OutputText | ReasoningText | None:
    """Return an empty part for a new item."""
    match item:
        case MessageOut():
            return OutputText()
        case ReasoningOut():
            return ReasoningText()
        case FunctionCallOut() | CustomToolCallOut():
            return None
