"""The comparison with other engines, with scripts in their place."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peer_engines import PEERS, PRECISIONS, WORKLOADS, Engine
from benchmarks.peer_report import agreement, common_prefix, rows, table, wrong_count
from benchmarks.peer_setup import PeerError, Setup, serving
from benchmarks.peers import Comparison, report

RUNNER = """
import json, os, sys
model, dtype, modes, reps = sys.argv[1:]
if model == "broken": sys.exit("libfast.so is missing")
for mode in modes.split(","):
    sample = {"peer": "fast-1.0", "dtype": dtype, "wl": mode.upper(), "other_cores": 0.0}
    sample |= {"ttft_ms": 5, "tpot_ms": 2} if mode == "w2" else {"out_tps": 50, "ntok": 12}
    print("noise"); print("RESULT " + json.dumps(sample))
"""
FAST = Engine(
    name="fast",
    python="fast",
    script="run_fast.py",
    words={"f32": "float32"},
    modes={"W1": "w1", "W2": "w2"},
    cannot={"int8": "has no integers", "W3": "has no server"},
)


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    (tmp_path / "run_fast.py").write_text(RUNNER)
    workload = {"w1": [{"prompt": [1], "out": 5}, {"prompt": [2], "out": 7}, {"out": 100}]}
    (tmp_path / "workload.json").write_text(json.dumps(workload))
    return Setup(
        peers_dir=tmp_path,
        home=tmp_path,
        pythons={"fast": sys.executable},
        model="tiny",
        num_prompts=2,
        threads=1,
        timeout_s=60,
    )


def changed(setup: Setup, **changes: Any) -> Setup:
    fields = {name: getattr(setup, name) for name in setup.__slots__}
    return Setup(**(fields | changes))


def sample(engine: str, index: int, wl: str = "W1", **figures: float) -> Mapping[str, Any]:
    return {
        "engine": engine,
        "peer": f"{engine}-1",
        "round": index,
        "wl": wl,
        "other_cores": 0.0,
    } | figures


def test_results_are_what_a_runner_prints(setup: Setup) -> None:
    results = list(FAST.run(setup, "f32", WORKLOADS))
    assert [(each["wl"], each["dtype"]) for each in results] == [
        ("W1", "float32"),
        ("W2", "float32"),
    ]


def test_a_peer_that_fails_is_listed_with_its_last_words(setup: Setup) -> None:
    comparison = Comparison(changed(setup, model="broken"), "f32", ["W1"])
    comparison.run(FAST, 2)
    assert comparison.failures == {"fast, round 2": "exit status 1: libfast.so is missing"}


def test_what_was_measured_before_a_failure_counts(setup: Setup) -> None:
    class Half(Engine):
        def _serve(self, setup: Setup, word: str) -> list[Any]:
            raise PeerError("the port is taken")

    half = Half(name="fast", python="fast", script=FAST.script, words=FAST.words, modes=FAST.modes)
    comparison = Comparison(setup, "f32", ["W1", "W3"])
    comparison.run(half, 0)
    assert [each["wl"] for each in comparison.samples] == ["W1"]
    assert comparison.failures == {"fast, round 0": "the port is taken"}


def test_a_peer_without_an_interpreter_is_listed(setup: Setup) -> None:
    comparison = Comparison(changed(setup, pythons={}), "f32", ["W1"])
    comparison.run(FAST, 0)
    assert comparison.failures["fast, round 0"] == "no interpreter: give --python fast=PATH"


def test_a_peer_without_a_runner_is_listed(setup: Setup) -> None:
    comparison = Comparison(changed(setup, peers_dir=Path("/nowhere")), "f32", ["W1"])
    comparison.run(FAST, 0)
    assert "there is no runner /nowhere/run_fast.py" in comparison.failures["fast, round 0"]


def test_what_a_peer_cannot_do_is_listed(setup: Setup) -> None:
    comparison = Comparison(setup, "f32", ["W1", "W3"])
    comparison.run(FAST, 0)
    assert comparison.failures == {"fast W3": "has no server"}
    assert [each["wl"] for each in comparison.samples] == ["W1"]


def test_a_peer_without_a_precision_is_not_run(setup: Setup) -> None:
    comparison = Comparison(setup, "int8", ["W1"])
    comparison.run(FAST, 0)
    assert comparison.failures == {"fast int8": "has no integers"}
    assert comparison.samples == []


def test_a_peer_that_leaves_tokens_out_does_not_count(setup: Setup) -> None:
    comparison = Comparison(changed(setup, num_prompts=1), "f32", ["W1"])
    comparison.run(FAST, 0)
    assert comparison.samples == []
    assert comparison.failures == {"fast-1.0 W1, round 0": "gave 12 of 5 tokens"}


def test_a_stuck_peer_is_listed(setup: Setup) -> None:
    with pytest.raises(PeerError, match=r"took longer than 0\.05 s"):
        changed(setup, timeout_s=0.05).results_of(
            [sys.executable, "-c", "import time; time.sleep(60)"]
        )


def test_a_server_that_ends_is_told() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    with pytest.raises(PeerError, match="its server ended: no such model"):  # noqa: SIM117
        with serving(command, {}, "http://127.0.0.1:9"):
            pass


def test_where_to_import_from_is_not_passed_on(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    assert "PYTHONPATH" not in setup.environment("/another/python")
    assert setup.environment(sys.executable)["PYTHONPATH"] == "/ours"


def test_a_ratio_is_made_within_a_round_and_its_median_is_shown() -> None:
    figures = [(100.0, 50.0), (30.0, 60.0), (40.0, 10.0)]
    samples = [
        each
        for index, (ours, theirs) in enumerate(figures)
        for each in (
            sample("jaxserve", index, out_tps=ours),
            sample("fast", index, out_tps=theirs),
        )
    ]
    [row] = rows(samples)
    assert row.ratios == (2.0, 0.5, 4.0)
    assert (row.ratio, row.ours, row.theirs) == (2.0, 40.0, 50.0)


def test_less_time_is_a_ratio_above_one() -> None:
    samples = [
        sample("jaxserve", 0, "W2", ttft_ms=50.0, tpot_ms=8.0),
        sample("fast", 0, "W2", ttft_ms=100.0, tpot_ms=6.0),
    ]
    assert [row.ratio for row in rows(samples)] == [2.0, 0.75]


def test_a_round_in_which_one_side_is_missing_is_left_out() -> None:
    samples = [
        sample("jaxserve", 0, out_tps=10.0),
        sample("fast", 0, out_tps=10.0),
        sample("fast", 1, out_tps=99.0),
    ]
    assert rows(samples)[0].ratios == (1.0,)


def test_a_busy_machine_shows_in_the_table() -> None:
    samples = [
        sample("jaxserve", 0, out_tps=30.0),
        {**sample("fast", 0, out_tps=20.0), "other_cores": 0.7},
    ]
    line = "| W1 tok/s | fast-1 | 30.0 | 20.0 | **1.50** | 1.50 | 0.70 (busy) |"
    assert line in table(rows(samples)).splitlines()


def test_agreement_ends_at_the_first_difference() -> None:
    assert common_prefix([1, 2, 3, 4], [1, 2, 9, 4]) == 2
    found = agreement("fast", [[1, 2, 9, 4], [5, 6, 7, 8]], [[1, 2, 3, 4], [5, 6, 7, 8]])
    assert (found.first, found.common, found.whole) == (1.0, 0.75, 0.5)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"wl": "W1", "ntok": 12}, None),
        ({"wl": "W1", "ntok": 0}, "gave 0 of 12 tokens"),
        ({"wl": "W3", "out": 11}, "gave 11 of 12 tokens"),
        ({"wl": "W1"}, None),
        ({"wl": "W2", "out": 128}, None),
    ],
)
def test_tokens_are_counted(fields: dict[str, Any], wrong: str | None) -> None:
    assert wrong_count(fields, wanted=12) == wrong


def test_the_report_leaves_nothing_out(setup: Setup) -> None:
    comparison = Comparison(setup, "f32", ["W1", "W3"])
    comparison.run(FAST, 0)
    about = {"model": "tiny", "precision": "f32", "date": "2026-11-21", "cpu": "one"}
    text = report(comparison, [], about)
    assert "- fast W3: has no server" in text
    assert "- cpu: one" in text


def test_every_peer_can_do_or_says_why_not() -> None:
    for peer in PEERS:
        assert set(PRECISIONS) == {*peer.words} | (set(peer.cannot) & set(PRECISIONS)), peer.name
        has_server = type(peer) is not Engine
        assert has_server or "W3" in {*peer.modes, *peer.cannot}, peer.name
