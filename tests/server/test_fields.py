"""The fields beyond OpenAI's: each does what its name says, in chats and in completions."""

from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from jaxserve.errors import InvalidRequestError
from jaxserve.execution.logits_processors import LogitsProcessors
from jaxserve.frontend.schema.parsing import parse
from jaxserve.server import ServerConfig
from jaxserve.server.completions.schema import CompletionBody
from jaxserve.server.http.decoding import decode
from tests.server.world import MAX_MODEL_LEN, World, events

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "once upon a time"}]},
    TEXT: {"prompt": "once upon a time"},
}
both = pytest.mark.parametrize("path", [CHAT, TEXT])


def ask(http: TestClient, path: str, **fields: Any) -> Any:
    response = http.post(path, json={**BODIES[path], "seed": 1, "max_tokens": 6, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def stream(http: TestClient, path: str, **fields: Any) -> list[Any]:
    body = {**BODIES[path], "seed": 1, "max_tokens": 12, "stream": True, **fields}
    with http.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        return events(response.iter_lines())[:-1]


def refused(http: TestClient, path: str, **fields: Any) -> Any:
    response = http.post(path, json={**BODIES[path], "max_tokens": 6, **fields})
    assert response.status_code == 400, response.text
    return response.json()["error"]


def num_tokens(chunk: Any) -> int:
    return sum(len(choice.get("token_ids") or ()) for choice in chunk["choices"])


@both
def test_a_stream_comes_in_pieces_of_so_many_tokens_after_the_first(
    http: TestClient, path: str
) -> None:
    fields = {"return_token_ids": True, "ignore_eos": True, "stream_interval": 4}
    check_pieces(stream(http, path, **fields), interval=4)


@both
def test_the_operator_can_set_the_interval_of_streams(path: str) -> None:
    with World(config=ServerConfig(port=0, stream_interval=6)) as world:
        chunks = stream(world.http(), path, return_token_ids=True, ignore_eos=True)
    check_pieces(chunks, interval=6)


def check_pieces(chunks: list[Any], *, interval: int) -> None:
    """Of 12 tokens; there may be more in a piece, where the reader was late."""
    _, *between, last = [count for count in map(num_tokens, chunks) if count]
    assert all(count >= interval for count in between)
    assert 0 < last < 12
    assert sum(map(num_tokens, chunks)) == 12


@both
def test_an_interval_changes_no_text(http: TestClient, path: str) -> None:
    def text(**fields: Any) -> str:
        choices = [c for chunk in stream(http, path, **fields) for c in chunk["choices"]]
        return "".join(
            c["text"] if path == TEXT else c["delta"].get("content", "") for c in choices
        )

    assert text(stream_interval=5) == text()


@pytest.mark.parametrize(("side", "kept"), [("left", slice(-4, None)), ("right", slice(4))])
def test_a_prompt_is_truncated_at_the_side_asked_for(
    http: TestClient, side: str, kept: slice
) -> None:
    prompt = [*range(10, 30)]
    fields = {"prompt": prompt, "return_token_ids": True, "truncation_side": side}
    answer = ask(http, TEXT, truncate_prompt_tokens=4, **fields)
    assert answer["choices"][0]["prompt_token_ids"] == prompt[kept]
    assert answer["usage"]["prompt_tokens"] == 4


@both
def test_minus_one_truncates_to_what_leaves_room_for_the_answer(
    http: TestClient, world: World, path: str
) -> None:
    long = "the quick brown fox jumps over the lazy dog " * 100
    bodies: dict[str, dict[str, Any]] = {
        TEXT: {"prompt": long},
        CHAT: {"messages": [{"role": "user", "content": long}]},
    }
    answer = ask(http, path, **bodies[path], truncate_prompt_tokens=-1, max_tokens=28)
    assert answer["usage"]["prompt_tokens"] == MAX_MODEL_LEN - 28


def test_what_is_echoed_of_a_truncated_prompt_is_what_is_left(
    http: TestClient, world: World
) -> None:
    ids = world.tokenizer.encode("once upon a time")
    fields = {"echo": True, "max_tokens": 0, "logprobs": 0}
    choice = ask(http, TEXT, truncate_prompt_tokens=2, **fields)["choices"][0]
    assert choice["text"] == world.text(ids[-2:])
    assert len(choice["logprobs"]["tokens"]) == 2


def test_the_prompts_text_is_what_the_model_saw(http: TestClient) -> None:
    choice = ask(http, TEXT, return_prompt_text=True)["choices"][0]
    assert choice["prompt_text"] == "once upon a time"
    rendered = "<|im_start|>user:once upon a time<|im_end|><|im_start|>assistant:"
    assert ask(http, CHAT, return_prompt_text=True)["prompt_text"] == rendered
    chunks = stream(http, CHAT, return_prompt_text=True)
    assert [chunk.get("prompt_text") for chunk in chunks][:2] == [rendered, None]


@both
def test_an_answer_is_known_by_the_clients_own_id(http: TestClient, path: str) -> None:
    response = http.post(path, json=BODIES[path], headers={"x-request-id": "mine-7"})
    assert response.json()["id"].endswith("-mine-7")
    assert response.headers["x-request-id"] == "mine-7"
    named = http.post(path, json={**BODIES[path], "request_id": "body"}).json()
    assert named["id"].endswith("-body")


@both
def test_answers_tell_how_long_they_took_where_the_operator_wants_it(path: str) -> None:
    with World(config=ServerConfig(port=0, per_request_metrics=True), step_s=0.002) as world:
        http = world.http()
        whole = ask(http, path, ignore_eos=True)["metrics"]
        chunks = stream(http, path, ignore_eos=True, stream_options={"include_usage": True})
    for timing in (whole, chunks[-1]["metrics"]):
        assert timing["speculative_decoding"] is None
        assert 0 <= timing["queue_time_ms"] <= timing["time_to_first_token_ms"]
        assert timing["generation_time_ms"] >= 5
        assert timing["mean_itl_ms"] >= 1
        assert 0 < timing["tokens_per_second"] < 1200


@both
def test_an_answer_of_one_token_has_no_time_between_tokens(path: str) -> None:
    with World(config=ServerConfig(port=0, per_request_metrics=True)) as world:
        timing = ask(world.http(), path, max_tokens=1)["metrics"]
    assert timing["tokens_per_second"] > 0
    assert "mean_itl_ms" not in timing


@both
def test_answers_tell_nothing_of_time_otherwise(http: TestClient, path: str) -> None:
    assert ask(http, path)["metrics"] is None
    assert not any("metrics" in chunk for chunk in stream(http, path))


@both
def test_streams_tell_their_usage_where_the_operator_wants_it(path: str) -> None:
    with World(config=ServerConfig(port=0, force_include_usage=True)) as world:
        http = world.http()
        assert stream(http, path)[-1]["usage"]["completion_tokens"] > 0
        options = {"include_usage": False}
        chunks = stream(http, path, stream_options=options)
        assert chunks[-1]["usage"]["total_tokens"] > 0
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts)
        assert counts[-1] == counts[-2] > 0


@both
def test_tokens_are_told_as_ids_where_the_operator_wants_it_and_the_request_has_the_last_word(
    path: str,
) -> None:
    def first_token(**fields: Any) -> str:
        logprobs = ask(http, path, logprobs=True if path == CHAT else 0, **fields)["choices"][0][
            "logprobs"
        ]
        return str(logprobs["content"][0]["token"] if path == CHAT else logprobs["tokens"][0])

    with World(config=ServerConfig(port=0, return_tokens_as_token_ids=True)) as world:
        http = world.http()
        assert first_token().startswith("token_id:")
        assert not first_token(return_tokens_as_token_ids=False).startswith("token_id:")


@both
def test_beams_are_told_the_best_first(http: TestClient, path: str) -> None:
    # To the fake device the likeliest tokens are 0, which ends a text, 1, 2, ..., always.
    fields = {"use_beam_search": True, "n": 2, "length_penalty": 0, "return_token_ids": True}
    answer = ask(http, path, **fields)
    assert [choice["token_ids"] for choice in answer["choices"]] == [[0], [1, 0]]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop", "stop"]
    assert answer["usage"]["completion_tokens"] == 3
    chunks = stream(http, path, **fields)
    ids = {
        c["index"]: c["token_ids"]
        for chunk in chunks
        for c in chunk["choices"]
        if c.get("token_ids")
    }
    assert ids == {0: [0], 1: [1, 0]}


@both
def test_more_beams_than_log_probabilities_allow_are_refused(http: TestClient, path: str) -> None:
    error = refused(http, path, use_beam_search=True, n=11)
    assert error["param"] == "n"
    assert "at most 10" in error["message"]


@both
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop", "x"),
        ("logit_bias", {"5": 1}),
        ("presence_penalty", 1.0),
        ("prompt_logprobs", 1),
        ("min_tokens", 2),
        ("temperature", 0.7),
        ("top_p", 0.9),
        ("top_k", 5),
        ("min_p", 0.1),
        ("repetition_penalty", 1.1),
        ("response_format", {"type": "json_object"}),
        ("guided_choice", ["a"]),
    ],
)
def test_what_beam_search_cannot_heed_is_refused(
    http: TestClient, path: str, name: str, value: object
) -> None:
    error = refused(http, path, use_beam_search=True, **{name: value})
    assert error["param"] == name
    assert "use_beam_search" in error["message"]


@both
def test_what_changes_nothing_may_stand_beside_beam_search(http: TestClient, path: str) -> None:
    neutral = {"temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1}
    others = {"seed": 5, "response_format": {"type": "text"}, "presence_penalty": 0}
    beams = ask(http, path, use_beam_search=True, n=2)["choices"]
    assert ask(http, path, use_beam_search=True, n=2, **neutral, **others)["choices"] == beams


@both
@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"stream_interval": 3}, "stream_interval", "stream=true"),
        ({"stream": True, "stream_interval": 0}, "stream_interval", "at least 1"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "at least 1"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "one of -1 or at least 1"),
        ({"truncation_side": "middle"}, "truncation_side", "'left' or 'right'"),
        ({"length_penalty": 2.0}, "length_penalty", "use_beam_search=true"),
        (
            {"repetition_detection": {"max_pattern_size": 2, "min_pattern_size": 3}},
            "repetition_detection.min_pattern_size",
            "in [1, 2]",
        ),
        (
            {"repetition_detection": {"max_pattern_size": 2, "min_count": 1}},
            "repetition_detection.min_count",
            "at least 2",
        ),
        ({"vllm_xargs": [1]}, "vllm_xargs", "an object"),
        ({"logprob_token_ids": [5]}, "logprob_token_ids", "logprobs"),
    ],
)
def test_values_that_mean_nothing_are_refused_by_name(
    http: TestClient, path: str, fields: dict[str, Any], param: str, message: str
) -> None:
    error = refused(http, path, **fields)
    assert error["param"] == param
    assert message in error["message"]


def test_offsets_are_where_the_tokens_stand_in_the_text(http: TestClient, world: World) -> None:
    prompt = "héllo <|im_start|>wörld €"
    choice = ask(http, TEXT, prompt=prompt, echo=True, logprobs=0, max_tokens=0)["choices"][0]
    offsets, tokens = choice["logprobs"]["text_offset"], choice["logprobs"]["tokens"]
    for offset, token in zip(offsets, tokens, strict=True):
        if not token.startswith("bytes:"):
            assert choice["text"].startswith(token, offset)
    assert offsets == sorted(offsets)
    assert max(offsets) <= len(prompt)


@both
@pytest.mark.parametrize("stream", [False, True])
def test_arguments_that_no_logits_processor_takes_are_refused(path: str, stream: bool) -> None:
    with World() as world:
        world.engine._limits = replace(world.engine._limits, check=LogitsProcessors().check)
        error = refused(world.http(), path, vllm_xargs={"sigma": 1}, stream=stream)
    assert error["param"] == "vllm_xargs"
    assert error["message"].startswith("vllm_xargs has no argument 'sigma'")


def test_arguments_of_logits_processors_can_be_sent_to_the_engine() -> None:
    text = b'{"prompt": "a", "vllm_xargs": {"a": 0.12345678901234567890123456789}}'
    value = parse(decode(text), CompletionBody).vllm_xargs["a"]
    assert (type(value), value) == (float, 0.12345678901234568)
    with pytest.raises(InvalidRequestError, match="integers have at most 64 bits"):
        parse({"prompt": "a", "vllm_xargs": {"a": [2**64]}}, CompletionBody)
