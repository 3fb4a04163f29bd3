import json
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest

from jaxserve.bench.datasets import DatasetOptions, is_valid, length_range, load_dataset
from jaxserve.bench.workload import Job, Vocabulary, Workload
from jaxserve.errors import ConfigError

# A word is a token; ids are lengths of words.
WORDS = Vocabulary(
    ids=range(100, 200),
    encode=lambda text: [len(word) for word in text.split()],
    decode=lambda ids: " ".join("x" * token_id for token_id in ids),
)


def load(**options: object) -> Workload:
    return load_dataset(DatasetOptions(**options), lambda: WORDS)  # type: ignore[arg-type]


def lengths(workload: Workload) -> set[tuple[int, int]]:
    return {(len(job.prompt_ids), job.num_output_tokens) for job in workload.jobs}


def conversation(num_words: int, num_answered: int) -> dict[str, object]:
    turns = [{"from": "human", "value": "w " * num_words}, {"value": "a " * num_answered}]
    return {"id": str(num_words), "conversations": turns}


@pytest.fixture
def sharegpt(tmp_path: Path) -> Path:
    path = tmp_path / "sharegpt.json"
    entries = [
        conversation(3, 50),  # too short a prompt
        conversation(10, 3),  # too short an answer
        conversation(1025, 50),  # too long a prompt
        conversation(1000, 1049),  # too long together
        {"id": "alone", "conversations": [{"value": "w w w w w"}]},
        conversation(4, 4),
        conversation(1024, 1024),
    ]
    path.write_text(json.dumps(entries))
    return path


def test_random_prompts_have_the_length_asked_for() -> None:
    assert lengths(load(num_prompts=5, random_input_len=6, random_output_len=3)) == {(6, 3)}


def test_general_lengths_come_before_the_datasets_own() -> None:
    workload = load(num_prompts=2, random_input_len=6, input_len=9, output_len=4)
    assert lengths(workload) == {(9, 4)}


def test_a_range_ratio_is_rounded_outwards() -> None:
    assert length_range(10, 0.25) == (7, 13)
    assert length_range(10, 0.0) == (10, 10)


def test_random_lengths_fill_their_range_to_both_ends() -> None:
    options = {"random_input_len": 4, "random_output_len": 2, "random_range_ratio": (0.5, 0.9)}
    found = lengths(load(num_prompts=300, **options))
    assert {prompt for prompt, _ in found} == {2, 3, 4, 5, 6}
    assert {answer for _, answer in found} == {1, 2, 3, 4}  # never 0


def test_random_prompts_share_a_prefix_and_nothing_else() -> None:
    jobs = load(num_prompts=4, random_input_len=20, random_prefix_len=8).jobs
    assert len({job.prompt_ids[:8] for job in jobs}) == 1
    assert len({job.prompt_ids[8:] for job in jobs}) == 4
    assert {len(job.prompt_ids) for job in jobs} == {28}


def test_random_tokens_are_of_the_vocabulary() -> None:
    drawn = {token for job in load(num_prompts=20).jobs for token in job.prompt_ids}
    assert drawn == set(WORDS.ids)


@pytest.mark.parametrize("name", ["random", "sharegpt-like", "prefix_repetition"])
def test_a_seed_decides_everything(name: str) -> None:
    first, again, other = (load(name=name, num_prompts=20, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.jobs != other.jobs


@pytest.mark.parametrize("name", ["random", "sharegpt-like", "prefix_repetition"])
def test_the_warm_up_job_is_not_among_those_measured(name: str) -> None:
    workload = load(name=name, num_prompts=20)
    assert workload.warm.prompt_ids not in {job.prompt_ids for job in workload.jobs}


def test_sharegpt_like_lengths_keep_vllms_rules_and_the_documented_means() -> None:
    workload = load(name="sharegpt-like", num_prompts=4000)
    assert all(is_valid(*pair) for pair in lengths(workload))
    assert fmean(len(job.prompt_ids) for job in workload.jobs) == pytest.approx(215, abs=12)
    assert fmean(job.num_output_tokens for job in workload.jobs) == pytest.approx(200, abs=12)


def test_sharegpt_without_a_file_is_named_sharegpt_like() -> None:
    workload = load(name="sharegpt", num_prompts=2)
    assert workload == load(name="sharegpt-like", num_prompts=2)
    assert workload.name.startswith("sharegpt-like")


def test_sharegpt_keeps_what_vllm_keeps(sharegpt: Path) -> None:
    workload = load(name="sharegpt", path=sharegpt, num_prompts=9, no_oversample=True)
    assert lengths(workload) == {(4, 4), (1024, 1024)}


def test_sharegpt_prompts_go_as_text(sharegpt: Path) -> None:
    jobs = load(name="sharegpt", path=sharegpt, num_prompts=1, disable_shuffle=True).jobs
    assert jobs == (Job((1, 1, 1, 1), 4, "w w w w "),)


def test_a_chosen_answer_length_may_be_short(sharegpt: Path) -> None:
    options = {"path": sharegpt, "num_prompts": 9, "no_oversample": True}
    workload = load(name="sharegpt", sharegpt_output_len=1, **options)
    assert lengths(workload) == {(4, 1), (10, 1), (1000, 1), (1024, 1)}


def test_too_few_conversations_are_repeated(sharegpt: Path) -> None:
    workload = load(name="sharegpt", path=sharegpt, num_prompts=9)
    assert len(workload.jobs) == 9
    assert lengths(workload) == {(4, 4), (1024, 1024)}


def test_each_prefix_is_shared_by_equally_many_prompts() -> None:
    workload = load(
        name="prefix_repetition",
        num_prompts=11,
        prefix_repetition_num_prefixes=3,
        prefix_repetition_prefix_len=5,
        prefix_repetition_suffix_len=4,
        prefix_repetition_output_len=2,
    )
    prefixes = [job.prompt_ids[:5] for job in workload.jobs]
    assert list(Counter(prefixes).values()) == [3, 3, 3]  # as in vLLM, the rest of 11 is left out
    assert prefixes != sorted(prefixes, key=prefixes.index), "not shuffled"
    assert lengths(workload) == {(9, 2)}


def test_a_custom_file_holds_texts_or_token_ids(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a bb ccc", "output_tokens": 5}\n\n{"prompt": [7, 8]}\n')
    options = {"path": path, "num_prompts": 2, "custom_output_len": 3, "disable_shuffle": True}
    jobs = load(name="custom", **options).jobs
    assert jobs == (Job((1, 2, 3), 3, "a bb ccc"), Job((7, 8), 3))


def test_a_file_of_token_ids_needs_no_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "work.json"
    fields = {"w1": [{"prompt": [1, 2], "out": 3}] * 3, "warm": {"prompt": [6], "out": 1}}
    path.write_text(json.dumps(fields))

    def vocabulary() -> Vocabulary:
        raise AssertionError("asked for the tokenizer")

    workload = load_dataset(DatasetOptions(name="custom", path=path, num_prompts=2), vocabulary)
    assert workload == Workload("work.json", (Job((1, 2), 3), Job((1, 2), 3)), Job((6,), 1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_prompts": 0}, "num_prompts must be at least 1, got 0"),
        ({"output_len": 0}, "output_len must be at least 1, got 0"),
        ({"random_range_ratio": (0.0, 1.0)}, r"random_range_ratio must be in \[0, 1\), got 1"),
        ({"random_input_len": 0}, "random_input_len must leave at least one token"),
        ({"name": "sonnet"}, "dataset_name must be one of random, sharegpt"),
        ({"name": "custom"}, "dataset_path must be given"),
        ({"name": "custom", "path": Path("/no.jsonl")}, "dataset_path must be JSON lines"),
        ({"name": "custom", "path": Path("/no.json")}, "workload must be a JSON file"),
        ({"name": "sharegpt", "path": Path("/no.json")}, "dataset_path must be a ShareGPT"),
        ({"name": "prefix_repetition", "num_prompts": 9}, "must be at least prefix_repetition"),
    ],
)
def test_a_dataset_that_cannot_be_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(**options)


def test_a_line_without_a_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(ConfigError, match="custom_output_len"):
        load(name="custom", path=path)
