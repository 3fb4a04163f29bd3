"""Measure what prefix caching gives to the turns of a chat over HTTP.

    jaxserve serve MODEL
    python -m benchmarks.chat_turns --base-url http://127.0.0.1:8000/v1 --turns 10

The same chat is held twice at the same time: each turn is asked once as usual, and once with a
`cache_salt` of its own, with which no cached page or state can be used. So both sides alternate in
one process, and the result is the ratio of each turn's pair. Answers are greedy, and those of both
sides must be equal. The whole is repeated `--rounds` times with new questions, after a round that
is not counted; the table has the medians.
"""

import argparse
import os
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import openai

from jaxserve.bench.environment import LoadMeter, describe_host

# About 120 tokens with the tokenizer of the embedded model.
QUESTION = (
    "This is question {turn} of talk {talk}. Please tell me a short story about a fox, a wizard and"
    " {turn} lazy dogs, then name the capital of France, and add {turn} and {talk} for me."
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A turn's answer. first_s: seconds until its first text."""

    text: str
    first_s: float
    num_prompt: int
    num_cached: int


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn with prefix caching and without."""

    cached: Answer
    uncached: Answer


def ask(
    client: openai.OpenAI, model: str, messages: list[Any], *, max_tokens: int, salt: str
) -> Answer:
    """Return the answer of a turn, streamed."""
    begin_s = time.perf_counter()
    stream = client.chat.completions.create(
        model=model,
        messages=messages,
        max_completion_tokens=max_tokens,
        temperature=0.0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"cache_salt": salt, "ignore_eos": True},
    )
    first_s, text, usage = None, "", None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            if choice.delta.content:
                first_s = first_s or time.perf_counter() - begin_s
                text += choice.delta.content
    assert first_s is not None, "the answer is empty"
    assert usage is not None, "the answer has no usage"
    details = usage.prompt_tokens_details
    num_cached = (details.cached_tokens or 0) if details else 0
    return Answer(text, first_s, usage.prompt_tokens, num_cached)


def talk(
    client: openai.OpenAI, model: str, *, number: int, turns: int, max_tokens: int
) -> list[Turn]:
    """Hold a chat. number: of the chat, which makes its questions and salts new."""
    messages: list[Any] = []
    found: list[Turn] = []
    for turn in range(turns):
        messages.append({"role": "user", "content": QUESTION.format(turn=turn + 1, talk=number)})
        salts = {"cached": f"talk {number}", "uncached": f"talk {number}, turn {turn}"}
        sides = list(salts)[:: 1 if (number + turn) % 2 else -1]  # each is first in turns
        answers = {
            side: ask(client, model, messages, max_tokens=max_tokens, salt=salts[side])
            for side in sides
        }
        found.append(Turn(**answers))
        if found[-1].cached.text != found[-1].uncached.text:
            raise SystemExit(f"turn {turn + 1} has another answer with prefix caching")
        messages.append({"role": "assistant", "content": found[-1].cached.text})
    return found


def row(number: int, rounds: list[Turn]) -> str:
    """Return a row of the table: a turn in every round."""
    last = rounds[-1].cached
    with_ms = 1e3 * median(each.cached.first_s for each in rounds)
    without_ms = 1e3 * median(each.uncached.first_s for each in rounds)
    ratio = median(each.uncached.first_s / each.cached.first_s for each in rounds)
    return (
        f"| {number} | {last.num_prompt} | {last.num_cached} | {with_ms:.1f} | {without_ms:.1f}"
        f" | {ratio:.2f} |"
    )


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1", metavar="URL")
    parser.add_argument("--turns", type=int, default=10, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--max-tokens", type=int, default=16, metavar="N", help="of each answer")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with openai.OpenAI(base_url=args.base_url, api_key="none", max_retries=0) as client:
        model = next(iter(client.models.list())).id
        with LoadMeter() as meter:
            rounds = [
                talk(client, model, number=number, turns=args.turns, max_tokens=args.max_tokens)
                for number in range(args.rounds + 1)
            ][1:]
    print(f"{model}; {describe_host()}; load average before {load:.1f},")
    print(f"{meter.other_cores:.1f} cores used by other processes than this one")
    print(
        "\n| turn | prompt tokens | cached | first text, ms | without caching, ms | ratio |"
        "\n|---|---|---|---|---|---|"
    )
    for number, of_turn in enumerate(zip(*rounds, strict=True), 1):
        print(row(number, list(of_turn)))


if __name__ == "__main__":
    main()
