"""Workloads: prompts and the number of tokens to generate for each."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxserve.api.request import Request
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Job:
    """A prompt, and the number of tokens to generate.

    text: the prompt as text; None for a prompt of random ids.
    """

    prompt_ids: tuple[int, ...]
    num_output_tokens: int
    text: str | None = None

    def request(self, request_id: str) -> Request:
        """Return the job as a greedy request that ignores end tokens."""
        params = SamplingParams(temperature=0, max_tokens=self.num_output_tokens, ignore_eos=True)
        return Request(id=request_id, prompt_ids=self.prompt_ids, params=params)


@dataclass(frozen=True, slots=True)
class Workload:
    """Jobs to measure, a job for warm-up, and the source of both."""

    name: str
    jobs: tuple[Job, ...]
    warm: Job

    def first(self, num_jobs: int | None) -> "Workload":
        """Return this workload with only its first jobs."""
        return Workload(self.name, self.jobs[:num_jobs], self.warm)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Vocabulary of the measured model: ids for random prompts, and the tokenizer."""

    ids: range | tuple[int, ...]
    encode: Callable[[str], list[int]]
    decode: Callable[[tuple[int, ...]], str]


def read_workload(path: Path) -> Workload:
    """Read {"w1": [{"id", "prompt": [ids], "out": count}, ...], "warm": {...}}.

    Raises ConfigError if the file is missing or has another format.
    """
    try:
        fields = json.loads(path.read_text("utf-8"))
        jobs = tuple(Job(tuple(job["prompt"]), job["out"]) for job in fields["w1"])
        return Workload(
            path.name, jobs, Job(tuple(fields["warm"]["prompt"]), fields["warm"]["out"])
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"workload must be a JSON file of token ids (docs/benchmarks.md), got {path}"
        ) from error
