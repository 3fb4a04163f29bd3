"""OpenAI's harmony format, which gpt-oss writes: an answer is a list of messages with channels.

    <|channel|>analysis<|message|>Where is it?<|end|><|start|>assistant<|channel|>commentary
    to=functions.weather <|constrain|>json<|message|>{"city": "Oslo"}<|call|>

The header of a message tells its kind: a call if it has a recipient, reasoning on the channel
`analysis`, and content otherwise.
"""

import re
from dataclasses import dataclass

from jaxserve.chat.call_form import CallForm
from jaxserve.chat.pieces import Sink
from jaxserve.chat.source import Emit, Reading, Source
from jaxserve.chat.syntax.json_value import is_object, skip_space

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
ASSISTANT = f"{START}assistant"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
MARKERS = (START, CHANNEL, "<|constrain|>", MESSAGE, *ENDS)
CALL = CallForm(
    call=f"{CHANNEL}commentary to=functions.{{name}} <|constrain|>json{MESSAGE}{{arguments}}",
    is_single=True,
    after_reasoning=ASSISTANT,
)
HEADER = re.compile(
    r"(?:<\|start\|>assistant)?\s*(?:to=(?:functions\.)?(?P<recipient>[\w.:-]+))?\s*"
    r"(?:<\|channel\|>(?P<channel>analysis|commentary|final))?\s*"
    r"(?:to=(?:functions\.)?(?P<named_late>[\w.:-]+))?\s*"
    r"(?:(?:<\|constrain\|>)?\s*(?:json|code|text))?\s*"
)


@dataclass(frozen=True, slots=True)
class Harmony:
    """The harmony format, usable as a format of calls, of reasoning, or of both.

    begins and ends: markers around reasoning, as in ReasoningFormat. written: the form of a call
    that a grammar enforces; such a call ends the answer.
    """

    signs: tuple[str, ...] = (CHANNEL, "analysis")
    begins: tuple[str, ...] = (f"{CHANNEL}analysis{MESSAGE}",)
    ends: tuple[str, ...] = ENDS
    ends_before: tuple[str, ...] = ()
    is_assumed: bool = False
    written: CallForm = CALL

    @property
    def markers(self) -> tuple[str, ...]:
        """Special tokens that the detokenizer must keep in the text."""
        return MARKERS

    def opened(self, prompt: str, *, begin: str) -> str:
        """See ReasoningFormat."""
        return prompt + begin


def read_messages(
    source: Source, sink: Sink, *, splits_reasoning: bool, finds_calls: bool, is_open: bool
) -> Reading[None]:
    """Read a whole answer; parts that the caller did not ask for are content.

    is_open: whether the answer begins inside a reasoning message.
    """
    if is_open:
        yield from _read_body(source, sink.reasoning)
        sink.after_markup()
    # The prompt ends with the header of the first message, up to its role.
    begins: tuple[str, ...] = (START, CHANNEL, "to=")
    while (yield from source.peek()):
        source.mark()
        begin = yield from source.accept(*begins)
        begins = (START, CHANNEL)
        text = (yield from source.short_until((MESSAGE,))) if begin else None
        header = None if text is None else HEADER.fullmatch(begin + text)
        recipient = header and (header["recipient"] or header["named_late"])
        if header is None or (recipient and not finds_calls):
            # Text outside a message, up to the next possible message.
            sink.content(source.release())
            end = yield from source.until((*begins, *ENDS), sink.content)
            yield from source.accept(*ENDS)
            if end in ENDS:
                sink.after_markup()
            continue
        source.mark()
        yield from source.accept(MESSAGE)
        sink.after_markup()
        if recipient:
            sink.call(recipient)
            yield from skip_space(source)
            yield from _read_arguments(source, sink)
        elif header["channel"] == "analysis" and splits_reasoning:
            yield from _read_body(source, sink.reasoning)
        else:
            yield from _read_body(source, sink.content)
        sink.after_markup()


def _read_arguments(source: Source, sink: Sink) -> Reading[None]:
    """Read the arguments of a call; they are complete if the message ends or they are valid JSON.

    The token that ends a call's message also ends the answer, and has no text.
    """
    parts: list[str] = []

    def emit(text: str) -> None:
        parts.append(text)
        sink.arguments(text)

    if (yield from _read_body(source, emit)) or is_object("".join(parts)):
        sink.end_call()


def _read_body(source: Source, emit: Emit) -> Reading[str]:
    """Read the text of a message and return its end marker; the next message may end it too."""
    end = yield from source.until((*ENDS, START), emit, trims=True)
    yield from source.accept(*ENDS)
    return end
