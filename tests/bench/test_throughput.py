import json
from pathlib import Path

import pytest

from benchmarks.throughput import Pair, table
from jaxserve.bench.throughput import Throughput
from jaxserve.bench.workload import Job, Workload, read_workload
from jaxserve.errors import ConfigError


def test_the_line_counts_prompt_and_output_tokens() -> None:
    result = Throughput(
        batch=8,
        num_requests=10,
        num_prompt_tokens=300,
        num_output_tokens=100,
        elapsed_s=4.0,
        kv_waste=0.02,
    )
    assert result.line() == (
        "Throughput: 2.50 requests/s, 100.00 total tokens/s, 25.00 output tokens/s"
    )


def test_a_workload_file_is_read_and_cut_to_its_first_jobs(tmp_path: Path) -> None:
    path = tmp_path / "work.json"
    jobs = [{"id": 0, "prompt": [1, 2], "out": 3}, {"id": 1, "prompt": [4], "out": 5}]
    path.write_text(json.dumps({"w1": jobs, "warm": {"prompt": [6], "out": 1}}))
    workload = read_workload(path)
    assert workload == Workload("work.json", (Job((1, 2), 3), Job((4,), 5)), Job((6,), 1))
    assert workload.first(1).jobs == (Job((1, 2), 3),)
    assert workload.first(None) == workload


@pytest.mark.parametrize("text", ["", "[]", '{"w1": []}', '{"w1": [{"prompt": 3}]}', "\x80"])
def test_a_file_that_is_no_workload_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "work.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match="workload must be a JSON file"):
        read_workload(path)


def test_a_job_runs_greedily_to_its_exact_length() -> None:
    params = Job((1, 2), 7).request("a").params
    assert (params.is_greedy, params.ignore_eos, params.max_tokens) == (True, True, 7)


def test_the_comparison_shows_the_median_of_the_rounds_own_ratios() -> None:
    workload = Workload("w", (Job((1,), 30), Job((1,), 10)), Job((1,), 1))
    pairs = [
        Pair(batch=8, round_index=index, jaxserve_s=ours, transformers_s=theirs, num_same=same)
        for index, (ours, theirs, same) in enumerate([(1, 2, 2), (2, 12, 1), (4, 12, 2)])
    ]
    row = table(pairs, workload).splitlines()[-1]
    assert row == "| 8 | 20.0 | 3.3 | 3.00 | 2.00, 6.00, 3.00 | 1 of 2 |"
