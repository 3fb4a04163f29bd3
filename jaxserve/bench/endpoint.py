"""Send a request to an OpenAI-compatible server and time its answer."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import h11
import msgspec

from jaxserve.bench.http import HttpClient, Response
from jaxserve.bench.workload import Job

DONE = b"[DONE]"
# vLLM's names; "vllm" has the same protocol as "openai".
BACKENDS = ("openai", "openai-chat", "vllm")
ENDPOINTS = {"openai": "/v1/completions", "vllm": "/v1/completions"}
ENDPOINTS["openai-chat"] = "/v1/chat/completions"


class Delta(msgspec.Struct):
    """Content of a chat's chunk. Servers use different names for reasoning."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class Choice(msgspec.Struct):
    """A chunk's part of an answer."""

    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None

    @property
    def new_text(self) -> str:
        """New text, including reasoning."""
        if self.delta is None:
            return self.text or ""
        thought = self.delta.reasoning or self.delta.reasoning_content
        return self.delta.content or thought or ""


class Usage(msgspec.Struct):
    """The server's token counts."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Chunk(msgspec.Struct):
    """The fields of a stream event that are read."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(Chunk).decode


@dataclass(slots=True)
class Record:
    """Timing of a request, in seconds of `time.perf_counter`.

    queue_s: wait due to max_concurrency before sending. times_s: arrival of each chunk with tokens.
    num_prompt, num_output: the server's token counts. error: why the request failed, or None.
    """

    start_s: float = 0.0
    queue_s: float = 0.0
    times_s: list[float] = field(default_factory=list[float])
    num_prompt: int = 0
    num_output: int = 0
    texts: list[str] = field(default_factory=list[str])
    error: str | None = None

    @property
    def ttft_s(self) -> float:
        """Time from the request to the first token."""
        return self.times_s[0] - self.start_s

    @property
    def latency_s(self) -> float:
        """Time from the request to the last token."""
        return self.times_s[-1] - self.start_s

    @property
    def itls_s(self) -> list[float]:
        """Gaps between chunks."""
        return [after - before for before, after in pairwise(self.times_s)]

    @property
    def tpot_s(self) -> float | None:
        """Mean time per token after the first, or None for a single token."""
        if self.num_output < 2:
            return None
        return (self.latency_s - self.ttft_s) / (self.num_output - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A server's endpoint and the common fields of all requests.

    decode: detokenizes prompts of token ids for chats. extra: additional fields of every body.
    """

    http: HttpClient
    backend: str
    path: str
    model: str
    decode: Callable[[tuple[int, ...]], str] | None = None
    ignore_eos: bool = False
    extra: dict[str, Any] = field(default_factory=dict[str, Any])
    timeout_s: float = 6 * 3600.0  # vLLM's

    def body(self, job: Job) -> bytes:
        """Return the body of a request."""
        fields: dict[str, Any] = {
            "model": self.model,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.backend == "openai-chat":
            text = job.text
            if text is None:
                assert self.decode is not None, "a chat needs the tokenizer"
                text = self.decode(job.prompt_ids)
            fields["messages"] = [{"role": "user", "content": text}]
            fields["max_completion_tokens"] = job.num_output_tokens
        else:
            fields["prompt"] = job.prompt_ids if job.text is None else job.text
            fields["max_tokens"] = job.num_output_tokens
        if self.ignore_eos:
            fields["ignore_eos"] = True
        return msgspec.json.encode(fields | self.extra)

    async def ask(self, body: bytes) -> Record:
        """Send a request, read its whole answer and return its timing or error."""
        record = Record(start_s=time.perf_counter())
        try:
            async with (
                asyncio.timeout(self.timeout_s),
                self.http.request("POST", self.path, body=body) as response,
            ):
                await self._read(response, record)
        except (OSError, TimeoutError, h11.RemoteProtocolError, msgspec.DecodeError) as error:
            record.error = f"{type(error).__name__}: {error}"
        if record.error is None and not (record.times_s and record.num_output):
            record.error = "the answer has no token" if record.num_output else "there is no usage"
        return record

    async def _read(self, response: Response, record: Record) -> None:
        if response.status != 200:
            said = (await response.read()).decode(errors="replace")
            record.error = f"{response.status}: {said[:500]}"
            return
        is_done = False
        rest = b""
        async for data in response.chunks():
            now_s = time.perf_counter()
            *lines, rest = (rest + data).split(b"\n")
            for message in _messages(lines):
                if message == DONE:
                    is_done = True
                else:
                    self._note(_decode_chunk(message), record, now_s)
        if not is_done and record.error is None:
            record.error = "the stream ended without [DONE]"

    def _note(self, chunk: Chunk, record: Record, now_s: float) -> None:
        if chunk.error is not None:
            record.error = str(chunk.error)
        if chunk.usage is not None:
            record.num_prompt = chunk.usage.prompt_tokens
            record.num_output = chunk.usage.completion_tokens
        for choice in chunk.choices:
            text = choice.new_text
            # The first chunk of a chat may have only a role and the last only a finish reason:
            # neither is a token. All chunks of a completion have tokens.
            if choice.delta is None or text or (choice.finish_reason and not record.times_s):
                record.times_s.append(now_s)
                record.texts.append(text)


def _messages(lines: list[bytes]) -> Iterator[bytes]:
    """Yield the data of server-sent events, which have one line each in OpenAI's API."""
    for line in lines:
        if line.startswith(b"data:"):
            yield line[5:].strip()
