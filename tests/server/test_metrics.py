"""GET /metrics: vLLM's names, and counts that add up to what clients were told."""

import re
from collections.abc import Mapping

import pytest
from starlette.testclient import TestClient

from tests.server.world import World, wait_for

# Every series of vLLM's Grafana dashboard, and what the Gateway API's endpoint picker reads.
NAMES = [
    "e2e_request_latency_seconds_bucket",
    "generation_tokens_total",
    "inter_token_latency_seconds_bucket",
    "iteration_tokens_total_count",
    "kv_cache_usage_perc",
    "num_preemptions_total",
    "num_requests_running",
    "num_requests_waiting",
    "prefix_cache_hits_total",
    "prefix_cache_queries_total",
    "prompt_tokens_cached_total",
    "prompt_tokens_total",
    "request_decode_time_seconds_sum",
    "request_generation_tokens_bucket",
    "request_inference_time_seconds_sum",
    "request_max_num_generation_tokens_sum",
    "request_params_max_tokens_sum",
    "request_params_n_sum",
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
    lines = http.get("/metrics").text.splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


@pytest.mark.parametrize("name", NAMES)
def test_vllms_series_are_there_before_the_first_request(name: str) -> None:
    with World() as world:
        text = world.http().get("/metrics").text
    assert re.search(rf'^vllm:{name}{{.*model_name="tiny/model"', text, re.MULTILINE)


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
    assert samples[f"vllm:request_params_n_sum{LABELS}"] == 1 + 2 * 2 + 3 * 3


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
        name = '{engine="0",finished_reason="abort",model_name="tiny/model"}'
        wait_for(lambda: scrape(http)[f"vllm:request_success_total{name}"] == 1)


def test_compilations_and_the_cache_are_told_by_who_knows() -> None:
    with World() as world:
        count = 3
        world.metrics.set_compilations(lambda: count, model_name=world.name)
        world.metrics.set_cache_config({"block_size": 4}, model_name=world.name)
        http = world.http()
        assert scrape(http)['jaxserve:compilations_total{model_name="tiny/model"}'] == 3
        count = 4
        samples = scrape(http)
    assert samples['jaxserve:compilations_total{model_name="tiny/model"}'] == 4
    assert samples['vllm:cache_config_info{block_size="4",engine="0",model_name="tiny/model"}'] == 1
