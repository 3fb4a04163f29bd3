"""Latencies with the default settings, on a virtual clock, for two very different devices."""

from math import inf
from statistics import fmean

import pytest

from benchmarks.scheduling import Traffic, kv_waste, long_prompt, make_scheduler
from benchmarks.virtual_device import LARGE_ON_GPU, SMALL_ON_CPU, Device, quantile, simulate
from jaxserve.api.engine_config import WorkModel

DEVICES = pytest.mark.parametrize("device", [LARGE_ON_GPU, SMALL_ON_CPU], ids=lambda d: d.name)


@DEVICES
@pytest.mark.parametrize("num_decodes", [4, 24])
def test_decodes_go_on_evenly_beside_a_prompt_of_100k_tokens(
    device: Device, num_decodes: int
) -> None:
    arrivals = Traffic().long_prompt(100_000, num_decodes=num_decodes, num_short=5, every_s=0.5)
    seen = long_prompt(make_scheduler(device), device, arrivals)
    assert quantile(seen.during, 0.99) <= 2 * quantile(seen.during, 0.5)


def test_a_step_beside_a_long_prompt_takes_about_twice_as_long() -> None:
    arrivals = Traffic().long_prompt(100_000, num_decodes=16, num_short=0, every_s=1.0)
    seen = long_prompt(make_scheduler(LARGE_ON_GPU), LARGE_ON_GPU, arrivals)
    assert quantile(seen.during, 0.5) <= 2.2 * quantile(seen.before, 0.5)


def test_decodes_go_on_evenly_even_if_attention_is_three_times_dearer_than_thought() -> None:
    device = SMALL_ON_CPU
    thought = WorkModel(free_tokens=20, prefill_attention=1 / 3000, decode_attention=1 / 366)
    arrivals = Traffic().long_prompt(20_000, num_decodes=16, num_short=5, every_s=2.0)
    seen = long_prompt(make_scheduler(device, work=thought), device, arrivals)
    assert quantile(seen.during, 0.99) <= 2 * quantile(seen.during, 0.5)


@DEVICES
def test_a_short_prompt_does_not_wait_for_a_long_one(device: Device) -> None:
    arrivals = Traffic().long_prompt(50_000, num_decodes=4, num_short=5, every_s=1.0)
    seen = long_prompt(make_scheduler(device), device, arrivals)
    alone = simulate(make_scheduler(device), device, [a for a in arrivals if a.name != "long"])
    without = [t.ttft_s for name, t in alone.traces.items() if name.startswith("short")]
    assert max(seen.short_ttft_s) <= 10 * max(without)
    assert max(seen.short_ttft_s) <= seen.ttft_s / 20


@DEVICES
def test_what_is_done_for_latency_costs_no_throughput(device: Device) -> None:
    arrivals = Traffic().at_once(4 * device.decode_sizes[-1])
    fair, greedy = (
        simulate(make_scheduler(device, slowdown=slowdown), device, arrivals)
        for slowdown in (2.0, inf)
    )
    assert fair.elapsed_s <= 1.02 * greedy.elapsed_s
    assert fmean(t.ttft_s for t in fair.traces.values()) <= 1.1 * fmean(
        t.ttft_s for t in greedy.traces.values()
    )


def test_kv_waste_is_under_four_percent_with_pages_of_16() -> None:
    scheduler = make_scheduler(SMALL_ON_CPU, page_size=16)
    simulate(scheduler, SMALL_ON_CPU, Traffic().at_once(64))
    assert 0.0 < kv_waste(scheduler) < 0.04
