"""Attacks with request bodies, for abuse.py: wide bodies, long grammars, many answers."""

import asyncio
import json
import time
from collections.abc import Iterable
from typing import Any

from benchmarks.abuse_client import (
    ANSWER_TIMEOUT_S,
    PLAIN_CHAT_S,
    Connection,
    Target,
    post,
    post_head,
)


def wide(path: str, field: str, entry: bytes, *, num_bytes: int = 15 * 2**20) -> bytes:
    """Return a request whose body is one field with a list of as many entries as fit."""
    body = b'{"%b":[%b%b]}' % (field.encode(), (entry + b",") * (num_bytes // len(entry)), entry)
    return post_head(path, len(body)) + body


async def expect(
    target: Target, request: bytes, statuses: Iterable[int], *, may_cut: bool = False
) -> list[str]:
    """Send a request; complain unless it is answered with one of the statuses.

    may_cut: or refused before all of it was sent, which can cost the answer.
    """
    connection = await Connection.to(target)
    try:
        await connection.send(request)
        line = await asyncio.wait_for(connection.line(), 6 * ANSWER_TIMEOUT_S)
    except ConnectionError as error:
        return [] if may_cut else [f"no answer: {error!r}"]
    except (OSError, TimeoutError) as error:
        return [f"no answer: {error!r}"]
    finally:
        connection.close()
    status = line.split()[1].decode() if line else "nothing"
    return [] if status in {str(each) for each in statuses} else [f"answered {status}"]


async def send_wide_bodies(target: Target) -> list[str]:
    """Send 20 bodies of 15 MB at once, wide in every way that a body can be."""
    requests = [
        wide("/v1/completions", "prompt", b"[]"),
        wide("/v1/completions", "prompt", b"1"),
        wide("/v1/completions", "allowed_token_ids", b"1"),
        wide("/v1/completions", "stop", b'""'),
        wide("/v1/chat/completions", "messages", b"{}"),
        wide("/v1/messages", "messages", b'{"role":"user","content":[]}'),
        wide("/v1/responses", "input", b'{"role":"user","content":[]}'),
        wide("/v1/embeddings", "input", b"[1]"),
        wide("/tokenize", "prompt", b'{"a":1}'),
        wide("/detokenize", "tokens", b"1234567"),
    ]
    # 503: they are more than all bodies together may be.
    answers = [expect(target, request, [400, 503], may_cut=True) for request in 2 * requests]
    return [complaint for complaints in await asyncio.gather(*answers) for complaint in complaints]


async def send_one_line_batch(target: Target) -> list[str]:
    """Run a batch whose file is one line of 50 MB."""
    border = "border"
    parts = (
        f'--{border}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{border}\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    ).encode()
    line = b'{"custom_id":"a","body":{"prompt":[%b1]}}' % (b"[]," * (50 * 2**20 // 3))
    form = parts + line + f"\r\n--{border}--\r\n".encode()
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        f"content-type: multipart/form-data; boundary={border}\r\n"
        f"content-length: {len(form)}\r\n\r\n"
    )
    connection = await Connection.to(target)
    await connection.send(head.encode() + form)
    answer = await connection.rest() or b""
    connection.close()
    file_id = json.loads(answer.partition(b"\r\n\r\n")[2] or b"{}").get("id")
    if file_id is None:
        return [f"the file was not taken: {answer[:200]!r}"]
    body = {
        "input_file_id": file_id,
        "endpoint": "/v1/completions",
        "completion_window": "24h",
    }
    complaints = await expect(target, post("/v1/batches", body), [200])
    await asyncio.sleep(target.seconds)
    return complaints


async def send_grammars(target: Target, forms: Iterable[dict[str, Any]]) -> list[str]:
    """Ask for answers of forms that are costly to follow, and for a plain chat all the while."""
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    complaints = []

    async def ask_plainly() -> None:
        while True:
            began_s = time.monotonic()
            complaints.extend(await expect(target, post("/v1/chat/completions", chat), [200]))
            if time.monotonic() - began_s > PLAIN_CHAT_S:
                complaints.append(f"a plain chat took {time.monotonic() - began_s:.1f} s")
            await asyncio.sleep(0.1)

    plain = asyncio.create_task(ask_plainly())
    requests = [post("/v1/chat/completions", {**chat, "structured_outputs": f}) for f in forms]
    answers = [expect(target, request, [200, 400, 503]) for request in requests]
    for found in await asyncio.gather(*answers):
        complaints += found
    plain.cancel()
    return complaints


async def send_long_regexes(target: Target) -> list[str]:
    """Ask for distinct expressions that repeat a million times."""
    return await send_grammars(
        target, [{"regex": f"{letter}{{1000000}}"} for letter in "abcdefghijklmnopqrstuvwxyz"]
    )


async def send_long_choices(target: Target) -> list[str]:
    """Ask twelve times for one of 25,000 texts."""
    return await send_grammars(
        target,
        [{"choice": [f"{form:02}-{i:07}" for i in range(25_000)]} for form in range(12)],
    )


async def send_many_choices(target: Target) -> list[str]:
    """Ask eight times for 128 answers, and for plain chats all the while."""
    many = {
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "n": 128,
        "max_tokens": 32,
        "ignore_eos": True,
    }
    greedy = [asyncio.create_task(Connection.to(target)) for _ in range(8)]
    connections = await asyncio.gather(*greedy)
    for connection in connections:
        await connection.send(post("/v1/chat/completions", many))
    complaints = await send_grammars(target, [{"json_object": True}])
    for connection in connections:
        connection.close()
    return complaints
