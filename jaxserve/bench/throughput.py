"""Throughput benchmark: an engine with all requests at once."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from jaxserve.bench.workload import Job, Vocabulary
from jaxserve.errors import JaxserveError
from jaxserve.offline.llm import LLM


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Work done in `elapsed_s` seconds with at most `batch` concurrent requests.

    kv_waste: share of empty token slots in the pages in use, over all steps.
    """

    batch: int
    num_requests: int
    num_prompt_tokens: int
    num_output_tokens: int
    elapsed_s: float
    kv_waste: float

    @property
    def requests_per_s(self) -> float:
        """Requests finished per second."""
        return self.num_requests / self.elapsed_s

    @property
    def tokens_per_s(self) -> float:
        """Tokens read and generated per second."""
        return (self.num_prompt_tokens + self.num_output_tokens) / self.elapsed_s

    @property
    def output_tokens_per_s(self) -> float:
        """Tokens generated per second."""
        return self.num_output_tokens / self.elapsed_s

    def line(self) -> str:
        """Return the line that vLLM's benchmark prints."""
        return (
            f"Throughput: {self.requests_per_s:.2f} requests/s,"
            f" {self.tokens_per_s:.2f} total tokens/s,"
            f" {self.output_tokens_per_s:.2f} output tokens/s"
        )


def vocabulary_of(llm: LLM) -> Vocabulary:
    """Return the vocabulary of a model in this process."""
    tokenizer = llm.get_tokenizer()
    return Vocabulary(
        ids=range(llm.plan.model.vocab_size), encode=tokenizer.encode, decode=tokenizer.decode
    )


def measure_throughput(llm: LLM, jobs: Sequence[Job], *, batch: int) -> Throughput:
    """Run all jobs, at most `batch` at a time, from an empty prefix cache; see `run_jobs`."""
    llm.reset_prefix_cache()
    before = llm.stats()
    start_s = time.perf_counter()
    outputs = run_jobs(llm, jobs, batch=batch)
    elapsed_s = time.perf_counter() - start_s
    after = llm.stats()
    num_slots = after.num_kv_slots - before.num_kv_slots
    return Throughput(
        batch=batch,
        num_requests=len(jobs),
        num_prompt_tokens=sum(len(job.prompt_ids) for job in jobs),
        num_output_tokens=sum(map(len, outputs)),
        elapsed_s=elapsed_s,
        kv_waste=(after.num_empty_kv_slots - before.num_empty_kv_slots) / max(num_slots, 1),
    )


def run_jobs(llm: LLM, jobs: Sequence[Job], *, batch: int) -> list[list[int]]:
    """Return the tokens of each job. Raises JaxserveError if any is missing.

    Otherwise a failed request would count as a fast one.
    """
    outputs: dict[str, list[int]] = {str(index): [] for index in range(len(jobs))}
    requests = [job.request(request_id) for job, request_id in zip(jobs, outputs, strict=True)]
    for event in llm.run(requests, max_in_flight=batch):
        outputs[event.request_id] += event.token_ids
    for job, tokens in zip(jobs, outputs.values(), strict=True):
        if len(tokens) != job.num_output_tokens:
            raise JaxserveError(
                f"a request of {job.num_output_tokens} tokens ended with {len(tokens)}"
            )
    return list(outputs.values())
