"""Grammars compiled in a process of their own: what is refused, and what becomes of the process."""

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
import pytest

from jaxserve.api.structured_outputs import StructuredOutputsParams
from jaxserve.errors import InvalidRequestError, OverloadedError
from jaxserve.grammar import GrammarSandbox
from tests.grammar.world import vocabulary

NUMBERS = tuple(f"{number:05}" for number in range(40_000))


@pytest.fixture(scope="module")
def sandbox() -> Iterator[GrammarSandbox]:
    yield GrammarSandbox(vocabulary())
    gc.collect()


def processes() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children()
        if "jaxserve.grammar.sandbox" in " ".join(child.cmdline())
    ]


@pytest.mark.parametrize(
    "asked",
    [
        {"json_object": True},
        {"regex": "a{10000}"},
        {"choice": NUMBERS[:25_000]},
        {"json": {"enum": [*NUMBERS[:20_000]]}},
        {"regex": "a", "reasoning_end": "<|im_end|>"},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_what_is_small_enough_is_served(sandbox: GrammarSandbox, asked: dict[str, object]) -> None:
    sandbox.check(StructuredOutputsParams(**asked))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ({"regex": "a{1000000}"}, "regex"),
        ({"regex": "b{100000}"}, "regex"),
        ({"grammar": "start: A\nA: /a{1000000}/"}, "grammar"),
    ],
)
def test_what_takes_too_much_memory_is_refused(
    sandbox: GrammarSandbox, asked: dict[str, str], kind: str
) -> None:
    with pytest.raises(InvalidRequestError, match=r"at most 16 MiB, got \d+ MiB") as caught:
        sandbox.check(StructuredOutputsParams(**asked))  # type: ignore[arg-type]
    assert caught.value.param == f"structured_outputs.{kind}"


def test_what_no_answer_can_follow_is_refused_by_its_keyword(sandbox: GrammarSandbox) -> None:
    for _ in range(2):
        with pytest.raises(InvalidRequestError, match="not supported: not") as caught:
            sandbox.check(StructuredOutputsParams(json={"not": {}}))
        assert caught.value.param == "structured_outputs.json"


def test_what_takes_too_much_time_ends_the_process_and_no_other_request() -> None:
    impatient = GrammarSandbox(vocabulary(), max_cpu_s=0.05)
    with pytest.raises(InvalidRequestError, match=r"choice takes too much time"):
        impatient.check(StructuredOutputsParams(choice=NUMBERS))
    impatient.check(StructuredOutputsParams(regex="a"))


def test_a_process_that_is_killed_at_work_refuses_nothing_for_good() -> None:
    before = processes()
    sandbox = GrammarSandbox(vocabulary(), max_cpu_s=30.0)
    sandbox.check(StructuredOutputsParams(regex="a"))
    (process,) = [each for each in processes() if each not in before]
    process.suspend()
    with ThreadPoolExecutor(1) as pool:
        verdict = pool.submit(sandbox.check, StructuredOutputsParams(regex="c"))
        process.kill()
        with suppress(OverloadedError):  # unless it found another process
            verdict.result(30.0)
    sandbox.check(StructuredOutputsParams(regex="c"))


def test_a_process_that_was_killed_starts_again() -> None:
    before = processes()
    sandbox = GrammarSandbox(vocabulary())
    sandbox.check(StructuredOutputsParams(regex="a"))
    (process,) = [each for each in processes() if each not in before]
    process.kill()
    process.wait(10.0)
    sandbox.check(StructuredOutputsParams(regex="b"))
    (process,) = [each for each in processes() if each not in before]
    del sandbox
    gc.collect()
    process.wait(10.0)
