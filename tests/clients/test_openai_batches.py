"""OpenAI's own client with files and batches."""

import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.clients.world import CAPITAL, KEY, MODEL, Address

CHAT = "/v1/chat/completions"
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def client(server: Address) -> Iterator[Any]:
    """Untyped: lists of what the client types by literals."""
    with openai.OpenAI(base_url=server.v1, api_key=KEY, max_retries=0) as client:
        yield client


def lines(*bodies: dict[str, Any]) -> bytes:
    """An input file, whose requests are named by their places."""
    chat = {"model": MODEL, "messages": [{"role": "user", "content": CAPITAL}]}
    requests = [
        {"custom_id": str(i), "method": "POST", "url": CHAT, "body": {**chat, **body}}
        for i, body in enumerate(bodies)
    ]
    return "\n".join(map(json.dumps, requests)).encode()


def begin(client: Any, *bodies: dict[str, Any]) -> Any:
    file = client.files.create(file=("in.jsonl", lines(*bodies)), purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        endpoint=CHAT,
        completion_window="24h",
        metadata={"project": "capitals"},
    )


def ended(client: Any, batch: Any) -> Any:
    """Poll until a batch has ended."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while batch.status in {"validating", "in_progress", "finalizing", "cancelling"}:
        assert time.monotonic() < deadline_s, f"it is {batch.status} for too long"
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    return batch


def results(client: Any, file_id: str) -> dict[str, Any]:
    """The lines of a file of results, by the names of their requests."""
    text = client.files.content(file_id).text
    return {line["custom_id"]: line for line in map(json.loads, text.splitlines())}


def test_a_batch_gives_its_answers_and_its_errors_as_files(client: Any) -> None:
    batch = ended(client, begin(client, {"temperature": 0}, {"temperature": -1}))
    assert batch.status == "completed"
    assert batch.metadata == {"project": "capitals"}
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (2, 1, 1)
    (good,) = results(client, batch.output_file_id).items()
    assert good[0] == "0"
    answer = openai.types.chat.ChatCompletion.model_validate(good[1]["response"]["body"])
    assert answer.choices[0].message.content == "The capital of France is Paris."
    (bad,) = results(client, batch.error_file_id).items()
    assert bad[0] == "1"
    assert bad[1]["response"]["status_code"] == 400
    assert bad[1]["response"]["body"]["error"]["param"] == "temperature"


def test_a_batch_is_cancelled_and_keeps_what_it_has(client: Any) -> None:
    endless = {"max_tokens": 200, "ignore_eos": True}
    batch = client.batches.cancel(begin(client, *[endless] * 400).id)
    assert batch.status in {"cancelling", "cancelled"}
    batch = ended(client, batch)
    assert batch.status == "cancelled"
    assert batch.cancelled_at >= batch.created_at
    assert batch.request_counts.completed < 400


def test_a_file_of_no_requests_fails_with_the_line_at_fault(client: Any) -> None:
    file = client.files.create(file=("in.jsonl", lines({}) + b"\nnot JSON\n"), purpose="batch")
    batch = ended(
        client,
        client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h"),
    )
    assert batch.status == "failed"
    assert [error.line for error in batch.errors.data] == [2]
    assert batch.output_file_id is None


def test_batches_are_listed_the_latest_first(client: Any) -> None:
    made = [ended(client, begin(client, {"max_tokens": 1})).id for _ in range(2)]
    assert [batch.id for batch in client.batches.list(limit=2)][:2] == made[::-1]


def test_a_file_is_kept_as_it_came_until_it_is_deleted(client: Any) -> None:
    content = lines({}, {})
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    assert (file.filename, file.bytes, file.purpose) == ("in.jsonl", len(content), "batch")
    assert client.files.wait_for_processing(file.id, poll_interval=0.01).status == "processed"
    assert client.files.content(file.id).read() == content
    assert file.id in [each.id for each in client.files.list(purpose="batch")]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
