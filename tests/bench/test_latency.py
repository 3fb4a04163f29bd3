from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from jaxserve.api.request import Request, TokenEvent
from jaxserve.bench.latency import Latency, measure_latency
from jaxserve.offline.llm import LLM


class Parrot:
    """In the place of an LLM: answers every request at once, and remembers it."""

    def __init__(self) -> None:
        self.plan = SimpleNamespace(model=SimpleNamespace(vocab_size=50))
        self.batches: list[Sequence[Request]] = []

    def run(self, requests: Sequence[Request], *, max_in_flight: int) -> Iterator[TokenEvent]:
        assert len(requests) == max_in_flight
        self.batches.append(requests)
        for request in requests:
            yield TokenEvent(request_id=request.id, index=0, token_ids=(1,) * self.num_tokens)

    num_tokens = 5


def measure(llm: Parrot, **options: Any) -> Latency:
    sizes = {"input_len": 3, "output_len": 5, "batch_size": 4}
    return measure_latency(cast(LLM, llm), **sizes, **options)


def test_batches_have_the_sizes_asked_for_and_the_first_are_not_measured() -> None:
    llm = Parrot()
    latency = measure(llm, num_warmup=2, num_iters=3)
    assert len(llm.batches) == 5
    assert len(latency.seconds) == 3
    assert {len(batch) for batch in llm.batches} == {4}
    assert {len(request.prompt_ids) for batch in llm.batches for request in batch} == {3}


def test_no_prompt_comes_twice() -> None:
    llm = Parrot()
    measure(llm, num_warmup=1, num_iters=4)
    assert len({request.prompt_ids for batch in llm.batches for request in batch}) == 20


def test_the_report_has_vllms_lines() -> None:
    assert Latency((1.0, 2.0, 3.0)).report().splitlines() == [
        "Avg latency: 2.0 seconds",
        "10% percentile latency: 1.2 seconds",
        "25% percentile latency: 1.5 seconds",
        "50% percentile latency: 2.0 seconds",
        "75% percentile latency: 2.5 seconds",
        "90% percentile latency: 2.8 seconds",
        "99% percentile latency: 2.98 seconds",
    ]


def test_the_result_has_vllms_keys() -> None:
    fields = Latency((1.0, 2.0)).fields()
    assert fields["avg_latency"] == 1.5
    assert fields["latencies"] == [1.0, 2.0]
    assert fields["percentiles"]["75"] == pytest.approx(1.75)
    assert list(fields["percentiles"]) == ["10", "25", "50", "75", "90", "99"]
