"""What a benchmark asks for: prompts as token ids, and how many tokens to continue each with."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from jaxserve.errors import ConfigError
from jaxserve.request import Request, SamplingParams


@dataclass(frozen=True, slots=True)
class Job:
    """A prompt, and the exact number of tokens to generate."""

    prompt_ids: tuple[int, ...]
    num_output_tokens: int

    def request(self, request_id: str) -> Request:
        """Return the job as a greedy request that no end token cuts short."""
        params = SamplingParams(temperature=0, max_tokens=self.num_output_tokens, ignore_eos=True)
        return Request(id=request_id, prompt_ids=self.prompt_ids, params=params)


@dataclass(frozen=True, slots=True)
class Workload:
    """Jobs to measure, one to warm up with, and where they come from, for the record."""

    name: str
    jobs: tuple[Job, ...]
    warm: Job

    def first(self, num_jobs: int | None) -> "Workload":
        """Return this workload cut to its first jobs."""
        return Workload(self.name, self.jobs[:num_jobs], self.warm)


def read_workload(path: Path) -> Workload:
    """Read {"w1": [{"id", "prompt": [ids], "out": count}, ...], "warm": {...}}.

    Raises ConfigError for a file that is not there or holds something else.
    """
    try:
        fields = json.loads(path.read_text("utf-8"))
        jobs = tuple(Job(tuple(job["prompt"]), job["out"]) for job in fields["w1"])
        return Workload(
            path.name, jobs, Job(tuple(fields["warm"]["prompt"]), fields["warm"]["out"])
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"workload must be a JSON file of token ids (benchmarks/README.md), got {path}"
        ) from error


def random_workload(
    *, num_prompts: int, input_len: int, output_len: int, vocab_size: int, seed: int
) -> Workload:
    """Return prompts of random tokens, all of one length."""
    for name, value in (
        ("num_prompts", num_prompts),
        ("input_len", input_len),
        ("output_len", output_len),
    ):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    draw = random.Random(seed)  # noqa: S311  (nothing secret)

    def job() -> Job:
        return Job(tuple(draw.randrange(vocab_size) for _ in range(input_len)), output_len)

    warm = job()
    name = f"random, {input_len} in, {output_len} out, seed {seed}"
    return Workload(name, tuple(job() for _ in range(num_prompts)), warm)
