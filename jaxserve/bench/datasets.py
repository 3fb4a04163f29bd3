"""The workloads of `jaxserve bench`, by vLLM's names and rules.

Prompts of random tokens go to the engine as ids, so that they have exactly the length asked for.
Each dataset draws one job more than was asked for, to warm up with: what is measured has not been
seen before, by the prefix cache either.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from jaxserve.bench.workload import Job, Vocabulary, Workload, read_workload
from jaxserve.errors import ConfigError

# vLLM's limits on conversations of ShareGPT, in tokens.
MIN_TOKENS = 4
MAX_PROMPT_TOKENS = 1024
MAX_TOTAL_TOKENS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetOptions:
    """Dataset options of the command line, with vLLM's names and defaults.

    input_len, output_len: override the lengths of the dataset, if it has such options.
    """

    name: str = "random"
    path: Path | None = None
    num_prompts: int = 1000
    seed: int = 0
    input_len: int | None = None
    output_len: int | None = None
    disable_shuffle: bool = False
    no_oversample: bool = False
    random_input_len: int = 1024
    random_output_len: int = 128
    random_range_ratio: tuple[float, float] = (0.0, 0.0)
    random_prefix_len: int = 0
    sharegpt_output_len: int | None = None
    custom_output_len: int | None = None
    prefix_repetition_prefix_len: int = 256
    prefix_repetition_suffix_len: int = 256
    prefix_repetition_num_prefixes: int = 10
    prefix_repetition_output_len: int = 128

    def __post_init__(self) -> None:
        """Raise ConfigError for numbers that mean nothing."""
        for name in ("num_prompts", "input_len", "output_len", "prefix_repetition_num_prefixes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        for ratio in self.random_range_ratio:
            if not 0 <= ratio < 1:
                raise ConfigError(f"random_range_ratio must be in [0, 1), got {ratio}")


@dataclass(frozen=True, slots=True)
class LengthMix:
    """A log-normal distribution of lengths, cut to [low, high]; median and sigma are uncut."""

    median: float
    sigma: float
    low: int
    high: int

    def draw(self, rng: Random) -> int:
        """Return a length."""
        while True:
            length = round(rng.lognormvariate(math.log(self.median), self.sigma))
            if self.low <= length <= self.high:
                return length


# Means of about 215 and 200 tokens, as for a thousand ShareGPT conversations with vLLM's filters
# and Llama's tokenizer.
SHAREGPT_LIKE_PROMPT = LengthMix(median=150, sigma=1.3, low=MIN_TOKENS, high=MAX_PROMPT_TOKENS)
SHAREGPT_LIKE_ANSWER = LengthMix(median=142, sigma=1.0, low=MIN_TOKENS, high=1024)


def load_dataset(options: DatasetOptions, vocabulary: Callable[[], Vocabulary]) -> Workload:
    """Return the jobs of a dataset.

    vocabulary: asked for when the dataset needs it; token ids from a file do not. Raises
    ConfigError for a file that is not there or holds something else, and for options that leave
    nothing to do.
    """
    match options.name:
        case "random":
            return random_workload(options, vocabulary())
        case "sharegpt" if options.path is not None:
            return sharegpt_workload(options, vocabulary())
        case "sharegpt" | "sharegpt-like":
            return sharegpt_like_workload(options, vocabulary())
        case "prefix_repetition":
            return prefix_repetition_workload(options, vocabulary())
        case "custom":
            return custom_workload(options, vocabulary)
        case _:
            raise ConfigError(f"dataset_name must be one of {', '.join(NAMES)}, got {options.name}")


NAMES = ("random", "sharegpt", "sharegpt-like", "prefix_repetition", "custom")


def length_range(length: int, ratio: float) -> tuple[int, int]:
    """Return the lowest and highest length that a ratio allows around a length, both inclusive."""
    return math.floor(length * (1 - ratio)), math.ceil(length * (1 + ratio))


def random_workload(options: DatasetOptions, vocabulary: Vocabulary) -> Workload:
    """Return prompts with one shared prefix followed by random tokens."""
    rng = Random(options.seed)  # noqa: S311  (nothing secret)
    input_len = options.input_len or options.random_input_len
    output_len = options.output_len or options.random_output_len
    input_low, input_high = length_range(input_len, options.random_range_ratio[0])
    output_low, output_high = length_range(output_len, options.random_range_ratio[1])
    if options.random_prefix_len + input_low < 1:
        raise ConfigError(f"random_input_len must leave at least one token, got {input_len}")
    prefix = rng.choices(vocabulary.ids, k=options.random_prefix_len)

    def job() -> Job:
        suffix = rng.choices(vocabulary.ids, k=rng.randint(input_low, input_high))
        return Job((*prefix, *suffix), max(1, rng.randint(output_low, output_high)))

    return _drawn(f"random, {input_len} in, {output_len} out", options, job)


def sharegpt_like_workload(options: DatasetOptions, vocabulary: Vocabulary) -> Workload:
    """Return prompts of random tokens with lengths distributed like ShareGPT's."""
    rng = Random(options.seed)  # noqa: S311
    output_len = options.output_len or options.sharegpt_output_len

    def job() -> Job:
        while True:
            prompt_len = SHAREGPT_LIKE_PROMPT.draw(rng)
            answer_len = output_len or SHAREGPT_LIKE_ANSWER.draw(rng)
            if is_valid(prompt_len, answer_len, any_answer=output_len is not None):
                return Job(tuple(rng.choices(vocabulary.ids, k=prompt_len)), answer_len)

    return _drawn("sharegpt-like", options, job)


def prefix_repetition_workload(options: DatasetOptions, vocabulary: Vocabulary) -> Workload:
    """Return prompts with several prefixes, each shared by equally many, in random order."""
    rng = Random(options.seed)  # noqa: S311
    num_prefixes = options.prefix_repetition_num_prefixes
    per_prefix = options.num_prompts // num_prefixes
    if per_prefix == 0:
        raise ConfigError(
            f"num_prompts must be at least prefix_repetition_num_prefixes ({num_prefixes}),"
            f" got {options.num_prompts}"
        )
    prefix_len = options.prefix_repetition_prefix_len
    suffix_len = options.prefix_repetition_suffix_len
    output_len = options.output_len or options.prefix_repetition_output_len

    def jobs(count: int) -> list[Job]:
        prefix = rng.choices(vocabulary.ids, k=prefix_len)
        return [
            Job((*prefix, *rng.choices(vocabulary.ids, k=suffix_len)), output_len)
            for _ in range(count)
        ]

    drawn = [job for _ in range(num_prefixes) for job in jobs(per_prefix)]
    if not options.disable_shuffle:
        rng.shuffle(drawn)
    name = f"prefix_repetition, {num_prefixes} prefixes of {prefix_len}, {suffix_len} more in"
    return Workload(f"{name}, {output_len} out, seed {options.seed}", tuple(drawn), jobs(1)[0])


def is_valid(prompt_len: int, output_len: int, *, any_answer: bool = False) -> bool:
    """Whether vLLM would keep a conversation of these lengths.

    any_answer: accept short answers, because the user chose their length.
    """
    return (
        MIN_TOKENS <= prompt_len <= MAX_PROMPT_TOKENS
        and (any_answer or output_len >= MIN_TOKENS)
        and prompt_len + output_len <= MAX_TOTAL_TOKENS
    )


def sharegpt_workload(options: DatasetOptions, vocabulary: Vocabulary) -> Workload:
    """Return the first turns of ShareGPT's conversations, with answers as long as the second."""
    assert options.path is not None
    output_len = options.output_len or options.sharegpt_output_len

    def jobs() -> Iterator[Job]:
        for first, second in turns:
            prompt_ids = vocabulary.encode(first)
            answer_len = output_len or len(vocabulary.encode(second))
            if is_valid(len(prompt_ids), answer_len, any_answer=output_len is not None):
                yield Job(tuple(prompt_ids), answer_len, first)

    try:
        turns = [
            (entry["conversations"][0]["value"], entry["conversations"][1]["value"])
            for entry in json.loads(options.path.read_text("utf-8"))
            if len(entry.get("conversations", ())) >= 2
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"dataset_path must be a ShareGPT JSON file, got {options.path}"
        ) from error
    if not options.disable_shuffle:
        Random(options.seed).shuffle(turns)  # noqa: S311
    return _taken(f"sharegpt, {options.path.name}", options, jobs())


def custom_workload(options: DatasetOptions, vocabulary: Callable[[], Vocabulary]) -> Workload:
    """Return the jobs of a file: JSON lines of {"prompt", "output_tokens"}, or of `read_workload`.

    A prompt is text or a list of token ids. A JSON workload file keeps its order.
    """
    if options.path is None:
        raise ConfigError("dataset_path must be given with dataset_name custom")
    if options.path.suffix == ".json":
        return read_workload(options.path).first(options.num_prompts)
    output_len = options.output_len or options.custom_output_len

    def job(fields: Any) -> Job:
        prompt, num_tokens = fields["prompt"], output_len or int(fields["output_tokens"])
        if isinstance(prompt, str):
            return Job(tuple(vocabulary().encode(prompt)), num_tokens, prompt)
        return Job(tuple(map(int, prompt)), num_tokens)

    try:
        lines = options.path.read_text("utf-8").splitlines()
        jobs = [job(json.loads(line)) for line in lines if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            "dataset_path must be JSON lines of prompt and output_tokens (or custom_output_len be"
            f" given), got {options.path}"
        ) from error
    if not options.disable_shuffle:
        Random(options.seed).shuffle(jobs)  # noqa: S311
    return _taken(f"custom, {options.path.name}", options, iter(jobs))


def _drawn(name: str, options: DatasetOptions, draw: Callable[[], Job]) -> Workload:
    jobs = tuple(draw() for _ in range(options.num_prompts))
    return Workload(f"{name}, seed {options.seed}", jobs, draw())


def _taken(name: str, options: DatasetOptions, source: Iterator[Job]) -> Workload:
    """Return the first jobs of a source, repeating some if it has too few.

    The next job, or the first if there is no other, is used for warm-up.
    """
    jobs = list(islice(source, options.num_prompts))
    if not jobs:
        raise ConfigError(f"dataset_path must contain a usable conversation, got {options.path}")
    warm = next(source, jobs[0])
    if not options.no_oversample:
        rng = Random(options.seed)  # noqa: S311
        jobs += rng.choices(jobs, k=options.num_prompts - len(jobs))
    return Workload(f"{name}, seed {options.seed}", tuple(jobs), warm)
