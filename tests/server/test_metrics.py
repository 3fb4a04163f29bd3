"""GET /metrics: vLLM's names, and counts that add up to what clients were told."""

import re
from collections.abc import Mapping

import pytest
from prometheus_client.exposition import generate_latest
from starlette.testclient import TestClient

from jaxserve.observability.metrics import Metrics, render
from jaxserve.observability.series import SeriesSet
from jaxserve.observability.startup import MadeProgram, Startup
from jaxserve.observability.stats import StepStats
from jaxserve.observability.timeline import StepRecord
from tests.server.world import World, wait_for

# Every series of vLLM's Grafana dashboard, and what the Gateway API's endpoint picker reads.
NAMES = [
    "admission_rejections_total",
    "e2e_request_latency_seconds_bucket",
    "estimated_flops_per_gpu_total",
    "estimated_read_bytes_per_gpu_total",
    "estimated_write_bytes_per_gpu_total",
    "generation_tokens_total",
    "inter_token_latency_seconds_bucket",
    "iteration_tokens_total_count",
    "kv_cache_usage_perc",
    "num_preemptions_total",
    "num_requests_running",
    "num_requests_waiting",
    "num_requests_waiting_by_reason",
    "prefix_cache_hits_total",
    "prefix_cache_queries_total",
    "prompt_tokens_by_source_total",
    "prompt_tokens_cached_total",
    "prompt_tokens_total",
    "request_decode_time_seconds_sum",
    "request_generation_tokens_bucket",
    "request_inference_time_seconds_sum",
    "request_max_num_generation_tokens_sum",
    "request_params_max_tokens_sum",
    "request_params_n_sum",
    "request_prefill_kv_computed_tokens_bucket",
    "request_prefill_time_seconds_sum",
    "request_prompt_tokens_bucket",
    "request_queue_time_seconds_sum",
    "request_success_total",
    "request_time_per_output_token_seconds_bucket",
    "time_to_first_token_seconds_bucket",
]
LABELS = '{engine="0",model_name="tiny/model"}'
BODY = {"prompt": "the quick brown fox", "max_tokens": 7, "ignore_eos": True}


def scrape(http: TestClient) -> Mapping[str, float]:
    """Every sample by its name and labels."""
    return read(http.get("/metrics").text)


def read(text: str) -> Mapping[str, float]:
    """Read Prometheus' text format."""
    lines = text.splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


@pytest.mark.parametrize("name", NAMES)
def test_vllms_series_are_there_before_the_first_request(name: str) -> None:
    with World() as world:
        text = world.http().get("/metrics").text
    assert re.search(rf'^vllm:{name}{{.*model_name="tiny/model"', text, re.MULTILINE)


@pytest.mark.parametrize(
    "name",
    [
        "device_gap_seconds_total",
        "empty_kv_slots_total",
        "kv_pages_released_total",
        "prefix_cache_stateless_tokens_total",
        "kv_slots_total",
        "step_device_seconds_total",
        "step_padding_tokens_total",
        "step_phase_seconds_total",
        "step_sequences_total",
        "step_tokens_total",
    ],
)
def test_series_of_our_own_are_there_before_the_first_request(name: str) -> None:
    with World() as world:
        text = world.http().get("/metrics").text
    assert re.search(rf'^jaxserve:{name}{{.*model_name="tiny/model"', text, re.MULTILINE)


def test_steps_are_told_with_their_phases_and_what_they_cost() -> None:
    metrics = Metrics(max_model_len=100)
    series = metrics.engine("m")
    record = StepRecord(
        wait_s=0.5,
        commit_s=0.25,
        device_s=2.0,
        gap_s=0.125,
        gap_max_s=0.75,
        num_tokens=5,
        num_sequences=3,
        padded_tokens=8,
        padded_sequences=8,
        program="decode-8",
        flops=100,
        read_bytes=50,
        written_bytes=25,
    )
    stats = StepStats(num_running=3, num_waiting=0, num_pages=9, num_pages_used=4, record=record)
    for _ in range(2):
        series.observe_step(stats)
    samples = read(render(metrics.snapshot()).decode())
    labels = 'engine="0",model_name="m"'
    wanted = {
        f'jaxserve:steps_total{{{labels},program="decode-8"}}': 2,
        f'jaxserve:step_phase_seconds_total{{{labels},phase="wait"}}': 1.0,
        f'jaxserve:step_phase_seconds_total{{{labels},phase="commit"}}': 0.5,
        f"jaxserve:step_device_seconds_total{{{labels}}}": 4.0,
        f'jaxserve:device_gap_seconds_total{{bound="lower",{labels}}}': 0.25,
        f'jaxserve:device_gap_seconds_total{{bound="upper",{labels}}}': 1.5,
        f"jaxserve:step_tokens_total{{{labels}}}": 10,
        f"jaxserve:step_padding_tokens_total{{{labels}}}": 6,
        f"jaxserve:step_sequences_total{{{labels}}}": 6,
        f"vllm:estimated_flops_per_gpu_total{{{labels}}}": 200,
        f"vllm:estimated_read_bytes_per_gpu_total{{{labels}}}": 100,
        f"vllm:estimated_write_bytes_per_gpu_total{{{labels}}}": 50,
    }
    assert {name: samples[name] for name in wanted} == wanted


def test_sequences_that_wait_are_told_by_reason() -> None:
    metrics = Metrics(max_model_len=100)
    stats = StepStats(num_running=3, num_waiting=5, num_deferred=2, num_pages=9, num_pages_used=4)
    metrics.engine("m").observe_step(stats)
    samples = read(render(metrics.snapshot()).decode())
    name = 'vllm:num_requests_waiting_by_reason{{engine="0",model_name="m",reason="{}"}}'
    assert samples['vllm:num_requests_waiting{engine="0",model_name="m"}'] == 5
    assert samples[name.format("capacity")] == 3
    assert samples[name.format("deferred")] == 2


def test_a_histogram_holds_what_is_at_or_below_each_bound() -> None:
    series = SeriesSet()
    tally = series.histogram("h", "text", {"a": "b"}, (1.0, 2.5))
    tally.observe(1.0, 3)
    tally.observe(1.5)
    tally.observe(9.0, 2)
    samples = read(generate_latest(series).decode())
    buckets = {le: samples[f'h_bucket{{a="b",le="{le}"}}'] for le in ("1.0", "2.5", "+Inf")}
    assert buckets == {"1.0": 3, "2.5": 4, "+Inf": 6}
    assert samples['h_count{a="b"}'] == 6
    assert samples['h_sum{a="b"}'] == 3 * 1.0 + 1.5 + 18.0


def test_counts_add_up_to_what_clients_were_told() -> None:
    with World() as world:
        http = world.http()
        usages = [
            http.post("/v1/completions", json={**BODY, "n": n}).json()["usage"] for n in (1, 2, 3)
        ]
        assert http.post("/v1/completions", json={**BODY, "n": 0}).status_code == 400
        world.wait_until_idle()
        samples = scrape(http)
    generated = sum(usage["completion_tokens"] for usage in usages)
    choices = 1 + 2 + 3
    assert generated == 7 * choices
    assert samples[f"vllm:generation_tokens_total{LABELS}"] == generated
    assert samples[f"vllm:request_generation_tokens_sum{LABELS}"] == generated
    finished = '{engine="0",finished_reason="length",model_name="tiny/model"}'
    assert samples[f"vllm:request_success_total{finished}"] == choices
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds"):
        assert samples[f"vllm:{name}_count{LABELS}"] == choices
    for name in ("queue", "inference", "prefill", "decode"):
        assert samples[f"vllm:request_{name}_time_seconds_count{LABELS}"] == choices
    assert samples[f"vllm:inter_token_latency_seconds_count{LABELS}"] == generated - choices
    assert samples[f"vllm:num_requests_running{LABELS}"] == 0
    assert samples[f"vllm:kv_cache_usage_perc{LABELS}"] == 0
    told = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    assert samples[f"vllm:prefix_cache_hits_total{LABELS}"] >= told
    # Once a request, as in vLLM, not once a choice.
    for name in ("request_params_n", "request_max_num_generation_tokens"):
        assert samples[f"vllm:{name}_count{LABELS}"] == 3
    assert samples[f"vllm:request_params_n_sum{LABELS}"] == 1 + 2 + 3
    assert samples[f"vllm:request_max_num_generation_tokens_sum{LABELS}"] == 3 * 7


def test_prompt_tokens_are_told_by_source() -> None:
    prompt = "once upon a time the quick brown fox jumps over the lazy dog"
    with World() as world:
        http = world.http()
        http.post("/v1/completions", json={**BODY, "prompt": prompt})
        usage = http.post("/v1/completions", json={**BODY, "prompt": prompt}).json()["usage"]
        world.wait_until_idle()
        samples = scrape(http)
    total, cached = 2 * usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]
    assert cached > 0
    name = 'vllm:prompt_tokens_by_source_total{{engine="0",model_name="tiny/model",source="{}"}}'
    assert samples[name.format("local_cache_hit")] == cached
    assert samples[name.format("local_compute")] == total - cached
    computed = f"vllm:request_prefill_kv_computed_tokens_sum{LABELS}"
    assert samples[computed] == total - cached


def test_the_longest_choice_of_a_request_is_told() -> None:
    with World() as world:
        http = world.http()
        body = {**BODY, "n": 8, "max_tokens": 60, "ignore_eos": False, "return_token_ids": True}
        choices = http.post("/v1/completions", json=body).json()["choices"]
        world.wait_until_idle()
        samples = scrape(http)
    lengths = [len(choice["token_ids"]) for choice in choices]
    assert min(lengths) < max(lengths)
    name = f"vllm:request_max_num_generation_tokens_sum{LABELS}"
    assert samples[name] == max(lengths)


def test_an_answer_that_got_stuck_counts_as_such() -> None:
    with World(says="la" * 40) as world:
        http = world.http()
        stuck = {"repetition_detection": {"max_pattern_size": 2, "min_count": 3}}
        body = {"prompt": "x", "max_tokens": 60, **stuck}
        (choice,) = http.post("/v1/completions", json=body).json()["choices"]
        world.wait_until_idle()
        samples = scrape(http)
    assert choice["finish_reason"] == "repetition"
    ends = 'vllm:request_success_total{{engine="0",finished_reason="{}",model_name="tiny/model"}}'
    assert samples[ends.format("repetition")] == 1
    assert samples[ends.format("stop")] == 0


def test_http_requests_are_counted_by_closed_labels() -> None:
    with World() as world:
        http = world.http()
        http.post("/v1/completions", json=BODY)
        http.post("/v1/completions", json={})
        http.request("BREW", "/v1/completions")
        for path in ("/a", "/b", "/v1/models/x", "/v1/models/y"):
            http.get(path)
        samples = {name: n for name, n in scrape(http).items() if "http_requests_total" in name}
    prefix = "jaxserve:http_requests_total"
    assert samples == {
        f'{prefix}{{handler="/v1/completions",method="POST",status="200"}}': 1,
        f'{prefix}{{handler="/v1/completions",method="POST",status="400"}}': 1,
        f'{prefix}{{handler="/v1/completions",method="other",status="405"}}': 1,
        f'{prefix}{{handler="/v1/models/{{model_id:path}}",method="GET",status="404"}}': 2,
        f'{prefix}{{handler="unmatched",method="GET",status="404"}}': 2,
    }


def test_a_client_that_leaves_counts_as_an_abort() -> None:
    with World(step_s=0.01) as world, world.http() as http:
        body = {**BODY, "max_tokens": 100, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as response:
            next(response.iter_lines())
        ends = (
            'vllm:request_success_total{{engine="0",finished_reason="{}",model_name="tiny/model"}}'
        )
        wait_for(lambda: scrape(http)[ends.format("abort")] == 1)
        assert scrape(http)[ends.format("length")] == 0


def test_compilations_and_the_cache_are_told_by_who_knows() -> None:
    with World() as world:
        count = 3
        world.metrics.set_compilations(lambda: count, model_name=world.name)
        world.metrics.set_cache_config({"block_size": 4}, model_name=world.name)
        startup = Startup(began_s=0.0)
        startup.add("weights", 1.0, 2.5, num_bytes=3000)
        startup.made(MadeProgram(name="decode-1", seconds=0.5, origin="cache"))
        world.metrics.set_startup(startup, model_name=world.name)
        http = world.http()
        assert scrape(http)['jaxserve:compilations_total{model_name="tiny/model"}'] == 3
        count = 4
        samples = scrape(http)
    assert samples['jaxserve:compilations_total{model_name="tiny/model"}'] == 4
    assert samples['jaxserve:startup_seconds{model_name="tiny/model",stage="weights"}'] == 1.5
    assert samples['jaxserve:startup_bytes{model_name="tiny/model",stage="weights"}'] == 3000
    made = 'jaxserve:program_seconds{model_name="tiny/model",origin="cache",program="decode-1"}'
    assert samples[made] == 0.5
    assert samples['vllm:cache_config_info{block_size="4",engine="0",model_name="tiny/model"}'] == 1
