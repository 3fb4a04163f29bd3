"""`jaxserve chat` as a talk: its history, and what ends an answer."""

import io
import sys
from collections.abc import Generator, Sequence

import pytest

from jaxserve.api.request import TokenEvent
from jaxserve.commands import chat
from jaxserve.errors import ContextLengthError


class Asked:
    """What `talk` asks, answered with the number of messages; room for `limit` of them."""

    def __init__(self, *, limit: int = 100, interrupts: bool = False) -> None:
        self.seen: list[list[str]] = []
        self._limit = limit
        self._interrupts = interrupts

    def __call__(self, messages: Sequence[dict[str, str]]) -> Generator[TokenEvent]:
        if len(messages) > self._limit:
            raise ContextLengthError("too long", param="prompt")
        self.seen.append([message["content"] for message in messages])
        return self._answer(len(messages))

    def _answer(self, count: int) -> Generator[TokenEvent]:
        yield TokenEvent(request_id="0", index=0, text=f"answer {count}")
        if self._interrupts:
            raise KeyboardInterrupt
        yield TokenEvent(request_id="0", index=0, text=".")


def talk(monkeypatch: pytest.MonkeyPatch, asked: Asked, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    chat.talk(asked)


def test_a_talk_keeps_its_history_until_it_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked()
    talk(monkeypatch, asked, "one", "", "two", "/reset", "three")
    assert asked.seen == [["one"], ["one", "answer 1.", "two"], ["three"]]


def test_a_talk_forgets_its_oldest_messages_when_the_context_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = Asked(limit=3)
    talk(monkeypatch, asked, "one", "two", "three")
    assert asked.seen[-1] == ["two", "answer 3.", "three"]


def test_a_message_too_long_alone_is_refused_and_the_talk_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(monkeypatch, Asked(limit=0), "one", "two")
    assert capsys.readouterr().err == "too long\ntoo long\n"


def test_ctrl_c_ends_an_answer_and_keeps_what_there_is_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = Asked(interrupts=True)
    talk(monkeypatch, asked, "one", "two")
    assert asked.seen[-1] == ["one", "answer 1", "two"]
