"""An engine whose attention is a kernel, here or simulated, yields the tokens of the reference."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from jaxserve.api.request import Request
from pallas_kernels.targets import SIMULATE
from tests.end_to_end.world import (
    Answers,
    engine_for,
    goldens,
    load,
    request,
    serve,
    write_one_layer,
)

MODEL = "stories260K-hd64-hf"  # with heads as wide as kernels want them
NUM_TOKENS = 12
# Beginnings of the goldens' stories: 8, 24 and 40 tokens, so of one, two and three pages.
LENGTHS = (8, 24, 40)


@dataclass(frozen=True)
class Place:
    """A target, simulated unless it is this CPU, the backend that it must choose, and a dtype."""

    target: str
    backend: str
    dtype: str


@dataclass(frozen=True)
class Runs:
    """The same requests three times: from nothing, from cached pages, and with too few pages."""

    backend: str
    cold: Answers
    hot: Answers
    crowded: Answers


def run(folder: Path, dtype: str, *, backend: str | None = None) -> Runs:
    loaded = load(
        folder,
        warm_up="none",
        page_size=16,
        max_num_seqs=4,
        max_num_batched_tokens=16,
        max_model_len=128,
        dtype=dtype,
        attention_backend=backend,
    )
    engine = engine_for(loaded)
    return Runs(
        backend=loaded.plan.context.attention.backend,
        cold=serve(engine, requests()),
        hot=serve(engine, requests()),
        crowded=serve(engine_for(loaded, num_pages=7), requests()),
    )


def requests() -> list[Request]:
    """The beginnings of stories, to be gone on with."""
    stories = [(*golden.prompt_ids, *golden.token_ids) for golden in goldens(MODEL)]
    return [
        request(str(length), story[:length], max_tokens=NUM_TOKENS)
        for length, story in zip(LENGTHS, stories, strict=False)
    ]


def tokens(answers: Answers) -> list[list[int]]:
    return [answers[str(length), 0].token_ids for length in LENGTHS]


PLACES = [
    Place("cpu", "cpu", "float32"),
    Place("v5e", "tpu", "float32"),
    Place("h200", "mosaic_gpu", "float16"),
]


@pytest.mark.parametrize("place", PLACES, ids=lambda each: each.target)
def test_tokens_are_those_of_the_reference(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: Place
) -> None:
    folder = write_one_layer(tmp_path, source=MODEL)
    expected = run(folder, place.dtype, backend="reference")
    if place.target != "cpu":
        monkeypatch.setenv(SIMULATE, place.target)
    found = run(folder, place.dtype)
    assert found.backend == place.backend
    for ours in (found.cold, found.hot, found.crowded):
        assert tokens(ours) == tokens(expected.cold)
    assert any(answer.num_cached_tokens for answer in found.hot.values())
    assert any(answer.num_preemptions for answer in found.crowded.values())
