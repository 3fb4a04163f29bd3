import math

import pytest

from jaxserve.bench.endpoint import Record
from jaxserve.bench.serving_metrics import (
    ServingMetrics,
    is_good,
    parse_goodput,
    peak_concurrency,
    peak_tokens_per_s,
    request_fields,
)
from jaxserve.errors import ConfigError

# First token after 100 ms, then three chunks 20, 20 and 40 ms apart, five tokens in all.
FIRST = Record(start_s=10.0, times_s=[10.1, 10.12, 10.14, 10.18], num_prompt=7, num_output=5)
# A single token after 300 ms.
SECOND = Record(start_s=10.05, queue_s=0.5, times_s=[10.35], num_prompt=3, num_output=1)
FAILED = Record(start_s=10.0, times_s=[10.2], num_prompt=9, num_output=9, error="503")


def metrics(goodput: dict[str, float] | None = None) -> ServingMetrics:
    return ServingMetrics.of([FIRST, SECOND, FAILED], 2.0, goodput=goodput or {})


def test_tpot_is_the_time_after_the_first_token_over_the_tokens_after_it() -> None:
    assert FIRST.tpot_s == pytest.approx(0.08 / 4)


def test_a_single_token_has_no_tpot() -> None:
    assert SECOND.tpot_s is None
    assert metrics().values["tpot"] == pytest.approx([0.02])


def test_itl_is_every_gap_between_chunks() -> None:
    assert metrics().values["itl"] == pytest.approx([0.02, 0.02, 0.04])


def test_failed_requests_are_counted_and_nothing_of_them_is() -> None:
    found = metrics()
    assert (found.completed, found.failed, found.num_input, found.num_output) == (2, 1, 10, 6)


@pytest.mark.parametrize(
    ("limits", "num_good"),
    [
        ({}, 2),
        ({"ttft": 100.5}, 1),
        ({"tpot": 19.0}, 1),  # the single token's TPOT counts as 0
        ({"e2el": 299.0, "ttft": 200.0}, 1),
        ({"ttft": 400.0, "tpot": 1.0, "e2el": 400.0}, 1),
        ({"ttft": 50.0}, 0),
    ],
)
def test_a_good_request_keeps_every_limit(limits: dict[str, float], num_good: int) -> None:
    assert metrics(limits).num_good == num_good


def test_a_limit_itself_is_kept() -> None:
    record = Record(start_s=0.0, times_s=[0.25], num_output=1)
    assert is_good(record, {"ttft": 250.0})


def test_goodput_is_read_as_vllm_reads_it() -> None:
    assert parse_goodput(["ttft:200", "e2el:1e3"]) == {"ttft": 200, "e2el": 1000}


@pytest.mark.parametrize("text", ["ttft", "itl:3", "ttft:fast", "tpot:-1"])
def test_other_goodput_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="goodput must"):
        parse_goodput([text])


def test_peak_concurrency_counts_those_under_way_at_one_moment() -> None:
    spans = [(0.0, 1.0), (0.5, 0.7), (0.6, 2.0), (1.0, 2.0), (3.0, 4.0)]
    records = [Record(start_s=start, times_s=[stop], num_output=1) for start, stop in spans]
    assert peak_concurrency(records) == 3
    assert peak_concurrency([]) == 0


def test_peak_throughput_shares_tokens_among_chunks() -> None:
    record = Record(start_s=5.0, times_s=[5.1, 6.2, 6.3], num_output=12)
    assert peak_tokens_per_s([record]) == 8


def test_the_report_has_vllms_lines() -> None:
    report = metrics({"ttft": 200.0}).report(
        ["ttft", "tpot"], [99.0, 99.9], max_concurrency=8, request_rate=2.5, has_goodput=True
    )
    assert report.splitlines() == [
        "============ Serving Benchmark Result ============",
        "Successful requests:                     2         ",
        "Failed requests:                         1         ",
        "Maximum request concurrency:             8         ",
        "Request rate configured (RPS):           2.50      ",
        "Benchmark duration (s):                  2.00      ",
        "Total input tokens:                      10        ",
        "Total generated tokens:                  6         ",
        "Request throughput (req/s):              1.00      ",
        "Request goodput (req/s):                 0.50      ",
        "Output token throughput (tok/s):         3.00      ",
        "Peak output token throughput (tok/s):    6.00      ",
        "Peak concurrent requests:                2.00      ",
        "Total token throughput (tok/s):          8.00      ",
        "---------------Time to First Token----------------",
        "Mean TTFT (ms):                          200.00    ",
        "Median TTFT (ms):                        200.00    ",
        "P99 TTFT (ms):                           298.00    ",
        "P99.9 TTFT (ms):                         299.80    ",
        "-----Time per Output Token (excl. 1st token)------",
        "Mean TPOT (ms):                          20.00     ",
        "Median TPOT (ms):                        20.00     ",
        "P99 TPOT (ms):                           20.00     ",
        "P99.9 TPOT (ms):                         20.00     ",
        "=" * 50,
    ]


def test_the_result_has_vllms_keys() -> None:
    fields = metrics().fields(["ttft", "tpot", "itl", "e2el"], [99.0])
    assert fields["request_goodput"] is None
    assert fields["median_ttft_ms"] == pytest.approx(200)
    assert fields["p99_itl_ms"] == pytest.approx(39.6)
    assert fields["std_e2el_ms"] == pytest.approx(60)
    names = [
        f"{f}_{n}_ms"
        for n in ("ttft", "tpot", "itl", "e2el")
        for f in ("mean", "median", "std", "p99")
    ]
    assert set(fields) == {
        "duration",
        "completed",
        "failed",
        "total_input_tokens",
        "total_output_tokens",
        "request_throughput",
        "request_goodput",
        "output_throughput",
        "total_token_throughput",
        "max_output_tokens_per_s",
        "max_concurrent_requests",
        *names,
    }


def test_details_have_an_entry_for_every_request() -> None:
    details = request_fields([FIRST, FAILED])
    assert details["ttfts"] == pytest.approx([0.1, 0])
    assert details["errors"] == ["", "503"]
    assert {len(values) for values in details.values()} == {2}


def test_a_run_of_failures_is_reported_as_zeros() -> None:
    found = ServingMetrics.of([FAILED], 1.0, goodput={})
    assert "Failed requests:                         1" in found.report(["ttft"], [99.0])
    assert not any(map(math.isnan, (found.peak_tokens_per_s, found.peak_concurrency)))
