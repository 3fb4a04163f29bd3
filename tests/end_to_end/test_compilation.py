"""After the warm-up nothing is compiled, whatever is asked for."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxserve.api.request import Request
from tests.end_to_end.world import (
    engine_for,
    load,
    noise,
    request,
    serve,
    with_text,
    write_one_layer,
)


def traffic(vocab_size: int) -> Iterator[Request]:
    """Every kind of request alone, so that it meets the smallest shapes, then all together."""
    yield request("greedy", (1, 5), max_tokens=4)
    yield request("long", (1, *range(20, 60)), max_tokens=4)
    yield request("sampled", (1, 6), max_tokens=4, temperature=0.8, top_p=0.9)
    yield request("adjusted", (1, 7), max_tokens=4, repetition_penalty=1.2, logprobs=20)
    yield request("scored", (1, *range(20, 60)), max_tokens=4, prompt_logprobs=20)
    yield request("choices", (1, *range(60, 80)), max_tokens=9, temperature=1.0, n=4)
    yield from noise(40, vocab_size=vocab_size, max_length=50)


def test_mixed_traffic_compiles_nothing(tmp_path: Path) -> None:
    loaded = load(write_one_layer(tmp_path), max_num_seqs=4, max_num_batched_tokens=8)
    assert loaded.compilations.since_mark == 0
    # 2 shapes for decoding, 2 for drawing under grammars, 1 for longer rows; allocating; a slot's
    # memory.
    assert loaded.programs.num_made == 7
    requests = list(traffic(loaded.plan.model.vocab_size))
    built = with_text(loaded, loaded.engine)
    for each in requests[:6]:
        serve(built, [each])
    engine = engine_for(loaded, num_pages=24, async_scheduling=False)
    serve(engine, requests, arrivals_per_step=2)
    assert engine.engine.stats().num_preemptions > 0
    for each in requests:
        built.add(each)
    while built.has_work:
        for event in built.step():
            if event.index == 0 and len(event.request_id) % 2:
                built.abort(event.request_id)
    loaded.engine.check_integrity()
    assert loaded.compilations.since_mark == 0
    # The counter does see what is compiled.
    jax.jit(lambda x: x * 3.0)(jnp.ones(77))
    assert loaded.compilations.since_mark > 0
