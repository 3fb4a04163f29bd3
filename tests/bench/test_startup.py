"""`jaxserve bench startup`, with a small server in the place of jaxserve's."""

import argparse
import json
import sys
from pathlib import Path

import pytest

from jaxserve.bench.startup import Start, fields, labelled_values, measure_startup, report, series
from jaxserve.commands.bench.startup import add_arguments, engine_arguments
from jaxserve.errors import JaxserveError

# Answers everything there is to ask, and leaves a line about each of its starts.
SERVER = """#!{python}
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
with open({seen!r}, "a") as seen:
    seen.write(json.dumps([sys.argv[1:], os.environ["XDG_CACHE_HOME"]]) + "\\n")
if "--broken" in sys.argv: sys.exit("there is no such flag")
ANSWERS = {{
    "/v1/models": {{"data": [{{"id": "tiny"}}]}},
    "/v1/completions": {{"choices": []}},
    "/metrics": {metrics!r},
}}
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        answer = ANSWERS[self.path]
        body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET
server = HTTPServer(("127.0.0.1", 0), Handler)
print(f"serves tiny at http://127.0.0.1:{{server.server_port}}", flush=True)
server.serve_forever()
"""

METRICS = """\
# TYPE jaxserve:startup_seconds gauge
jaxserve:startup_seconds{model_name="tiny",stage="imports"} 1.5
jaxserve:startup_seconds{model_name="tiny",stage="ready"} 4.0
# TYPE jaxserve:startup_bytes gauge
jaxserve:startup_bytes{model_name="tiny",stage="imports"} 3e+06
# TYPE jaxserve:program_seconds gauge
jaxserve:program_seconds{model_name="tiny",origin="compiled",program="decode-1"} 2.5
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="tiny"} 0.0
"""


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the server's starts are written down."""
    path, program = tmp_path / "seen.jsonl", tmp_path / "python"
    program.write_text(SERVER.format(python=sys.executable, seen=str(path), metrics=METRICS))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return path


def test_cold_starts_have_a_cache_each_and_warm_ones_share_a_full_one(seen: Path) -> None:
    starts = list(measure_startup(["tiny"], num_cold=2, num_warmup=1, num_warm=2))
    assert [kind for kind, _ in starts] == ["cold", "cold", "warm", "warm"]
    lines = [json.loads(line) for line in seen.read_text().splitlines()]
    assert {tuple(arguments) for arguments, _ in lines} == {
        ("-m", "jaxserve", "serve", "tiny", "--port", "0")
    }
    caches = [cache for _, cache in lines]
    assert len(set(caches[:3])) == 3
    assert len(set(caches[2:])) == 1
    assert not any(Path(cache).exists() for cache in caches)


def test_a_start_tells_milestones_and_the_servers_own_stages(seen: Path) -> None:
    [(_, start)] = measure_startup(["tiny"], num_cold=1, num_warmup=1, num_warm=0)
    assert 0 < start.ready_s < start.first_token_s
    assert start.stages == {"imports": 1.5, "ready": 4.0}
    assert start.rates == {"imports": 2e6}
    assert start.programs == {"decode-1": 2.5}


def test_a_server_that_does_not_start_is_told_with_its_last_words(seen: Path) -> None:
    with pytest.raises(JaxserveError, match="did not start:\nthere is no such flag"):
        list(measure_startup(["--broken"], num_cold=1, num_warmup=0, num_warm=0))


def test_a_server_that_tells_no_stages_has_none() -> None:
    assert labelled_values("", "jaxserve:startup_seconds", "stage") == {}


STARTS = [
    Start(ready_s=2.0, first_token_s=3.0, stages={"load": 1.0}, rates={}, programs={}),
    Start(
        ready_s=4.0,
        first_token_s=4.5,
        stages={"load": 1.5, "compile": 2.0},
        rates={},
        programs={},
    ),
]


def test_a_stage_that_a_start_had_not_took_no_time() -> None:
    assert series(STARTS)["compile"] == [0.0, 2.0]


def test_the_report_shows_medians_and_extremes() -> None:
    lines = report("cold", STARTS).splitlines()
    assert lines[0] == "COLD STARTUP, 2 starts (seconds)"
    assert lines[2].split() == ["startup", "3.00", "2.00", "4.00"]
    assert [line.split()[0] for line in lines[2:]] == ["startup", "first_token", "load", "compile"]


def test_the_result_has_vllms_keys() -> None:
    result = fields("warm", STARTS)
    assert result["avg_warm_startup_time"] == 3.0
    assert result["warm_startup_times"] == [2.0, 4.0]
    assert result["warm_startup_percentiles"]["90"] == pytest.approx(3.8)


def test_the_servers_flags_are_those_that_were_given() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["some/model", "--max-num-seqs", "4", "--no-async-scheduling", "--num-iters-cold", "1"]
    args = parser.parse_args([*words, "--served-model-name", "a", "b", "--dtype", "float32"])
    found = engine_arguments(args)
    assert found[0] == "some/model"
    expected = ["--max-num-seqs=4", "--no-async-scheduling", "--served-model-name", "a", "b"]
    assert set(found[1:]) == {*expected, "--dtype=float32"}
