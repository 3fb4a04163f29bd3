"""`jaxserve bench serve` against a server whose delays and faults are known."""

import asyncio
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxserve.bench.arrivals import Arrivals
from jaxserve.bench.datasets import DatasetOptions
from jaxserve.bench.serve import Point, ServeSettings, measure_server
from jaxserve.bench.serve_results import warnings
from jaxserve.cli import main
from tests.bench.world import StandIn, serving


def measure(stand_in: StandIn, jobs: list[dict[str, Any]], path: Path, **options: Any) -> Point:
    """Send jobs of a custom file in order, and return what came of it."""
    return measure_all(stand_in, jobs, path, **options)[0]


def measure_all(
    stand_in: StandIn, jobs: list[dict[str, Any]], path: Path, **options: Any
) -> list[Point]:
    file = path / "jobs.jsonl"
    file.write_text("\n".join(map(json.dumps, jobs)))
    dataset = DatasetOptions(
        name="custom", path=file, num_prompts=len(jobs), disable_shuffle=True, no_oversample=True
    )

    async def points(settings: ServeSettings) -> list[Point]:
        return [point async for point in measure_server(settings)]

    with serving(stand_in):
        settings = ServeSettings(
            base_url=stand_in.url, dataset=dataset, show_progress=False, **options
        )
        return asyncio.run(points(settings))


def jobs(count: int, *, num_tokens: int = 4) -> list[dict[str, Any]]:
    return [{"prompt": [1, 2, 3], "output_tokens": num_tokens} for _ in range(count)]


def test_tokens_are_the_servers_count_and_not_the_chunks(tmp_path: Path) -> None:
    found = measure(StandIn(tokens_per_chunk=4), jobs(2, num_tokens=8), tmp_path).metrics
    assert (found.num_output, found.num_input, found.completed) == (16, 14, 2)
    assert len(found.values["itl"]) == 2


def test_the_servers_delays_are_found(tmp_path: Path) -> None:
    point = measure(StandIn(ttft_s=0.08, itl_s=0.03), jobs(1, num_tokens=6), tmp_path)
    values = point.metrics.values
    # No upper limits: this machine may be busy. A token that is read late makes the next gap short.
    assert values["ttft"][0] >= 0.08
    assert values["e2el"][0] >= 0.08 + 5 * 0.03
    assert values["e2el"][0] == pytest.approx(values["ttft"][0] + 5 * values["tpot"][0])
    assert point.metrics.duration_s >= values["e2el"][0]


def test_no_more_requests_are_under_way_than_allowed(tmp_path: Path) -> None:
    stand_in = StandIn(ttft_s=0.02)
    point = measure(stand_in, jobs(7), tmp_path, concurrencies=[3])
    assert stand_in.max_running == 3
    assert point.metrics.peak_concurrency == 3
    assert max(point.metrics.values["client_queue_time"]) >= 0.04  # two turns of others


def test_a_connection_is_used_again(tmp_path: Path) -> None:
    stand_in = StandIn()
    measure(stand_in, jobs(6), tmp_path, concurrencies=[2])
    assert len(stand_in.bodies) == 6
    assert len(stand_in.clients) <= 2


def test_requests_come_at_their_times(tmp_path: Path) -> None:
    arrivals = Arrivals(request_rate=50, burstiness=math.inf)
    point = measure(StandIn(), jobs(4), tmp_path, arrivals=[arrivals])
    starts = [record.start_s for record in point.run.records]
    assert starts == sorted(starts)
    assert point.run.duration_s >= 0.08


def test_each_load_is_measured(tmp_path: Path) -> None:
    points = measure_all(StandIn(), jobs(3), tmp_path, concurrencies=[1, 2])
    assert [point.load.max_concurrency for point in points] == [1, 2]
    assert [point.metrics.peak_concurrency for point in points] == [1, 2]


def test_a_completion_asks_for_token_ids_and_usage(tmp_path: Path) -> None:
    stand_in = StandIn()
    measure(stand_in, jobs(1), tmp_path, ignore_eos=True, extra={"temperature": 0.0})
    assert stand_in.bodies == [
        {
            "model": "stand-in",
            "prompt": [1, 2, 3],
            "max_tokens": 4,
            "ignore_eos": True,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


def test_a_chat_asks_with_text_and_its_role_is_no_token(tmp_path: Path) -> None:
    stand_in = StandIn(ttft_s=0.05)
    prompts = [{"prompt": "hi there", "output_tokens": 3}]
    tokenizer = Path("jaxserve/assets/jaxserve-tiny")
    point = measure(stand_in, prompts, tmp_path, backend="openai-chat", tokenizer=tokenizer)
    assert stand_in.bodies[0]["messages"] == [{"role": "user", "content": "hi there"}]
    assert stand_in.bodies[0]["max_completion_tokens"] == 3
    assert point.metrics.values["ttft"][0] >= 0.05
    assert len(point.run.records[0].times_s) == 3


def test_warm_up_requests_are_sent_and_not_counted(tmp_path: Path) -> None:
    stand_in = StandIn()
    point = measure(stand_in, jobs(2), tmp_path, num_warmups=3)
    assert (len(stand_in.bodies), point.metrics.completed) == (5, 2)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("status", "503: .*queue is full"),
        ("error", "the engine has died"),
        ("cut", r"ended without \[DONE\]"),
        ("silent", "there is no usage"),
    ],
)
def test_a_request_that_fails_is_told_and_the_others_go_on(
    fault: str, said: str, tmp_path: Path
) -> None:
    prompts = [*jobs(2), {"prompt": [13], "output_tokens": 4}]
    point = measure(StandIn(fault=fault), prompts, tmp_path)
    assert (point.metrics.completed, point.metrics.failed) == (2, 1)
    [error] = [record.error for record in point.run.records if record.error]
    assert re.search(said, error)
    assert error in warnings(point)[0]


def test_tokens_that_did_not_come_are_told(tmp_path: Path) -> None:
    point = measure(StandIn(missing_tokens=1), jobs(2), tmp_path)
    assert "2 of 8 requested tokens are missing (use --ignore-eos?)" in warnings(point)


def test_a_server_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--ready-check-timeout-sec", "0.1", "--base-url", "http://127.0.0.1:9"]
    assert main(["bench", "serve", *arguments]) == 1
    assert "the server was not ready in 0.1 s" in capsys.readouterr().err


def test_a_server_that_is_loading_is_waited_for(tmp_path: Path) -> None:
    stand_in = StandIn(num_refused=1)
    point = measure(stand_in, jobs(2), tmp_path, ready_timeout_s=30.0)
    assert point.metrics.completed == 2
    assert [body["prompt"] for body in stand_in.bodies] == ["Hello", "Hello", [1, 2, 3], [1, 2, 3]]
    assert stand_in.bodies[0]["max_tokens"] == 1


def command(stand_in: StandIn, *arguments: str) -> int:
    lengths = ("--num-prompts", "4", "--input-len", "5", "--output-len", "3")
    tokenizer = ("--tokenizer", "jaxserve/assets/jaxserve-tiny")
    return main(["bench", "serve", "--base-url", stand_in.url, *lengths, *tokenizer, *arguments])


def test_the_command_prints_the_report_and_writes_vllms_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    arguments = ["--result-dir", str(tmp_path), "--label", "mine", "--metadata", "tp=1"]
    arguments += ["--max-concurrency", "2", "--goodput", "ttft:5000", "--temperature", "0"]
    arguments += ["--metric-percentiles", "50,99", "--header", "x-team=bench"]
    with serving(StandIn()) as stand_in:
        assert command(stand_in, *arguments, "--save-result", "--save-detailed") == 0
    assert "Total generated tokens:                  12" in capsys.readouterr().out
    assert stand_in.headers[0]["authorization"] == "Bearer secret"
    assert stand_in.headers[0]["x-team"] == "bench"
    assert stand_in.bodies[0]["temperature"] == 0
    [path] = tmp_path.iterdir()
    assert re.fullmatch(r"mine-infqps-concurrency2-stand-in-[0-9]{8}-[0-9]{6}\.json", path.name)
    result = json.loads(path.read_text())
    assert (result["model_id"], result["num_prompts"], result["tp"]) == ("stand-in", 4, "1")
    assert (result["request_rate"], result["max_concurrency"]) == ("inf", 2)
    assert result["request_goodput"] == result["request_throughput"]
    assert len(result["ttfts"]) == len(result["generated_texts"]) == 4
    assert "p50_ttft_ms" in result
    assert 0 < result["client_cores"] < 4


def test_a_list_of_loads_is_a_sweep_with_a_plot(tmp_path: Path) -> None:
    plot = tmp_path / "plots" / "sweep.svg"
    arguments = ["--max-concurrency", "1,2", "--result-dir", str(tmp_path), "--save-result"]
    with serving(StandIn()) as stand_in:
        status = command(stand_in, *arguments, "--result-filename", "a.json", "--plot", str(plot))
    assert status == 0
    prompts = [tuple(body["prompt"]) for body in stand_in.bodies]
    assert len(set(prompts)) == 8, "a prefix cache would know prompts of the load before"
    results = [json.loads((tmp_path / name).read_text()) for name in ("a.json", "a-1.json")]
    assert [result["max_concurrency"] for result in results] == [1, 2]
    drawn = plot.read_text()
    for text in ("median TPOT (ms)", "output tokens per second", "concurrent requests", "p99"):
        assert f"<!-- {text} -->" in drawn


def test_failures_make_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(StandIn(fault="cut", faulty_token=None)) as stand_in:
        assert command(stand_in) == 1
    assert "Failed requests:                         4" in capsys.readouterr().out


def test_the_command_loads_neither_jax_nor_numpy() -> None:
    script = (
        "import sys\n"
        "import jaxserve.bench.serve_results, jaxserve.bench.startup\n"
        "heavy = {'jax', 'numpy', 'transformers', 'tokenizers'} & sys.modules.keys()\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--goodput", "itl:3"], "goodput must name one of ttft, tpot, e2el, got itl"),
        (["--base-url", "ftp://x"], "base_url must be a URL such as http://127.0.0.1:8000"),
        (["--header", "x"], "header must be like NAME=VALUE, got x"),
        (["--tokenizer", "/nowhere"], "tokenizer must be given"),
        (["--request-rate", "1", "--burstiness", "0"], "burstiness must be above 0, got 0"),
        (["--dataset-name", "custom"], "dataset_path must be given"),
    ],
)
def test_a_mistake_is_named(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(StandIn()) as stand_in:
        assert command(stand_in, *arguments) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-concurrency", "0"],
        ["--max-concurrency", "many"],
        ["--request-rate", "-1"],
        ["--percentile-metrics", "ttft,speed"],
        ["--random-range-ratio", '{"input": 0.5}'],
        ["--extra-body", "{"],
        ["--backend", "tgi"],
    ],
)
def test_words_that_cannot_be_read_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "serve", *arguments])
    assert exit_.value.code == 2
    assert arguments[0] in capsys.readouterr().err
