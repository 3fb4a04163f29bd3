import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest

from jaxserve import __version__
from jaxserve.bench.ceilings import Ceilings
from jaxserve.cli import main
from tests.data import checkpoint

# As few and as small programs as there can be.
SMALL = ("--max-num-seqs", "2", "--max-num-batched-tokens", "32", "--max-model-len", "128")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the real program."""
    return subprocess.run(
        [sys.executable, "-m", "jaxserve", *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture
def model() -> str:
    return str(checkpoint("stories260K-hf"))


def test_the_help_of_a_command_lists_its_flags() -> None:
    assert "--gpu-memory-utilization" in run("serve", "--help").stdout


def test_version_is_printed() -> None:
    assert run("--version").stdout == f"jaxserve {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["plan", "/no/such/model"], 1, "there is no folder /no/such/model"),
        (["plan", "--dtype", "int3"], 2, "--dtype: invalid choice: 'int3'"),
        (["plan", "--max-model-len", "8q"], 2, "--max-model-len: must be a whole number, got '8q'"),
        (
            ["plan", "--gpu-memory-utilization", "1.5"],
            1,
            "gpu_memory_utilization must be a number in (0, 1]",
        ),
        (["plan", "--speed=high"], 2, "unrecognized arguments: --speed=high"),
        (["plan", "--max-num-se=4"], 2, "unrecognized arguments: --max-num-se=4"),
        (["plan", "--block-size", "0"], 1, "block_size must be an integer of at least 1, got 0"),
        (["serve", "--port", "70000"], 1, "port must be an integer in [0, 65535], got 70000"),
        (["serve", "--ssl-certfile", "a.pem"], 1, "must be given together"),
        (["fly"], 2, "invalid choice: 'fly'"),
        (["chat", "--temperature", "hot"], 2, "--temperature: invalid float value: 'hot'"),
    ],
)
def test_a_mistake_ends_in_one_line(arguments: list[str], status: int, said: str) -> None:
    found = run(*arguments)
    assert found.returncode == status
    assert found.stdout == ""
    assert found.stderr.count("\n") == 1
    assert said in found.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--max-model-len", "9k"], "max_model_len must be at most the model's own context (512)"),
        (["--kv-cache-memory-bytes", "1k"], "1000 B (--kv-cache-memory-bytes) hold 0"),
        (["--num-gpu-blocks-override", "99999999"], "The KV cache does not fit"),
        (["--tensor-parallel-size", "99"], "tensor_parallel_size is 99"),
        (["-tp", "3"], "tensor_parallel_size must divide"),
    ],
)
def test_a_plan_that_cannot_work_is_refused_with_the_reason(
    model: str, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", model, *flags]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("jaxserve: error: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err


def test_an_accelerator_that_is_not_there_ends_in_one_line(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "abacus")
    found = run("plan", model)
    assert found.returncode == 1
    assert "JAX finds no device to run on (JAX_PLATFORMS is 'abacus')" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_taken_port_is_known_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "/no/such/model", "--port", str(port)]) == 1
    assert f"port {port}: the port is in use" in capsys.readouterr().err


def test_plan_needs_no_weights(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(Path(model) / "config.json", tmp_path)
    flags = ("--block-size", "32", "--max-num-seqs", "2", "--linear-backend", "xla")
    assert main(["plan", str(tmp_path), *flags]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"weights +1015\.8 KiB", printed)
    assert re.search(r"KV pages .* x 32 = ", printed)


def test_a_config_file_gives_flags_and_the_command_line_overrules_it(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model: {model}\nblock-size: 32\nmax_num_seqs: 2\nserved-model-name: [a, b]\n"
        "enable-prefix-caching: false\nmax-model-len: 0.25K\n"
    )
    own = ("--max-model-len", "128")
    for arguments in ([*own, "--config", str(config)], ["--config", str(config), *own]):
        assert main(["plan", *arguments]) == 0
        printed = capsys.readouterr().out
        assert "context 128" in printed
        assert "x 32 = " in printed
        assert "of 2 sequences" in printed


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("block-size: 32: 1", 1, "config must be a readable YAML file"),
        ("- 1", 1, "config must be a YAML file with flags and values"),
        ("config: config.yaml", 1, "config cannot be set by a config file"),
        ("block-size: {a: 1}", 1, "block-size in"),
        ("no-such-flag: 1", 2, "unrecognized arguments: --no-such-flag=1"),
        ("block-size: big", 2, "--block-size: must be a whole number, got 'big'"),
    ],
)
def test_a_bad_config_file_is_refused(tmp_path: Path, text: str, status: int, said: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(text)
    found = run("plan", "--config", str(config))
    assert found.returncode == status
    assert found.stderr.count("\n") == 1
    assert said in found.stderr


def test_generate_prints_the_prompt_and_its_continuation(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = ("--prompt", "Once upon a time", "--temperature", "0", "--max-tokens", "8")
    assert main(["generate", model, *SMALL, *prompt]) == 0
    captured = capsys.readouterr()
    assert captured.out == "Once upon a time, there was a little girl\n"
    assert "KV pages" in captured.err


def test_generate_prints_json_lines(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Once upon a time"))
    assert main(["generate", model, *SMALL, "--json", "--max-tokens", "4"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["prompt"] == "Once upon a time"
    assert found["num_generated_tokens"] == 4
    assert found["finish_reason"] == "length"


def batch_line(custom_id: str, **body: Any) -> str:
    """Return a line of a batch's input file."""
    body = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 8, **body}
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}
    return json.dumps(line) + "\n"


def test_run_batch_answers_a_file_through_a_link_and_counts_what_failed(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target, link = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "link"
    link.symlink_to(target)
    source.write_text(batch_line("a") + "\n" + batch_line("b", n=0), "utf-8")
    parsers = ("--reasoning-parser", "none", "--tool-call-parser", "none")
    files = ("-i", str(source), "-o", str(link))
    assert main(["run-batch", *files, "--model", model, *SMALL, *parsers]) == 0
    assert link.is_symlink()
    results = {r["custom_id"]: r for r in map(json.loads, target.read_text("utf-8").splitlines())}
    choice = results["a"]["response"]["body"]["choices"][0]
    assert choice["text"] == ", there was a little girl"
    refused = results["b"]
    assert (refused["response"]["status_code"], refused["response"]["body"]) == (400, None)
    assert refused["error"]["error"]["type"] == "invalid_request_error"
    assert results["a"]["error"] is None
    assert "answered 1 of 2 requests, 1 failed" in capsys.readouterr().err


def test_run_batch_writes_to_standard_output(model: str, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(batch_line("a"), "utf-8")
    found = run("run-batch", "-i", str(source), "-o", "/dev/stdout", "--model", model, *SMALL)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["custom_id"] == "a"


def test_run_batch_has_no_model_to_load_for_an_empty_file(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n")
    assert main(["run-batch", "-i", str(source), "-o", str(target), "--model", "/no/model"]) == 0
    assert target.read_bytes() == b""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1 of .*: the body is not JSON"),
        (batch_line("a") + "\n" + batch_line("a"), "line 3 of .*: custom_id 'a' is not unique"),
        (batch_line("a").replace("POST", "GET"), "line 1 of .*: method must be"),
    ],
)
def test_run_batch_refuses_a_file_that_is_no_batch(
    tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(text)
    assert main(["run-batch", "-i", str(source), "-o", str(target), "--model", "/no/model"]) == 1
    assert re.search(said, capsys.readouterr().err)
    assert not target.exists()


def test_run_batch_does_not_overwrite_its_input(tmp_path: Path) -> None:
    source, link = tmp_path / "in.jsonl", tmp_path / "link"
    source.write_text(batch_line("a"), "utf-8")
    link.symlink_to(source)
    assert main(["run-batch", "-i", str(source), "-o", str(link), "--model", "/no/model"]) == 1
    assert source.read_text("utf-8") == batch_line("a")


def test_chat_answers_one_message(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    message = ("--system-prompt", "Once upon ", "-q", "a time", "--chat-template", template)
    sampling = ("--temperature", "0", "--max-tokens", "8")
    assert main(["chat", model, *SMALL, *message, *sampling]) == 0
    assert capsys.readouterr().out == ", there was a little girl\n"


def test_bench_throughput_prints_vllms_line_and_writes_json(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "result.json"
    workload = ("--input-len", "8", "--output-len", "4", "--num-prompts", "3", "--batch", "1,2")
    flags = ("--max-num-batched-tokens", "32", "--max-model-len", "128")
    arguments = ["bench", "throughput", model, *flags, *workload, "--output-json", str(target)]
    assert main(arguments) == 0
    lines = re.findall(
        r"^Throughput: \d+\.\d\d requests/s, \d+\.\d\d total tokens/s, \d+\.\d\d output tokens/s$",
        capsys.readouterr().out,
        re.MULTILINE,
    )
    assert len(lines) == 2
    record = json.loads(target.read_text())
    assert [result["batch"] for result in record["results"]] == [1, 2]
    assert {result["num_output_tokens"] for result in record["results"]} == {12}


def test_profile_tells_every_phase_and_what_the_device_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # To measure them takes ten seconds, and the numbers mean nothing here.
    ceilings = Ceilings(bytes_per_s=1e9, flops_per_s=1e9)
    monkeypatch.setattr("jaxserve.bench.ceilings.measure_ceilings", lambda **_: ceilings)
    target = tmp_path / "profile.json"
    workload = ("--input-len", "8", "--output-len", "4", "--num-prompts", "2", "--slowest", "1")
    output = ("--output-json", str(target), "--trace", str(tmp_path / "trace"))
    assert main(["profile", *SMALL, *workload, *output]) == 0
    printed = capsys.readouterr().out
    for name in ("schedule", "pack", "dispatch", "wait", "commit", "emit", "device", "gap"):
        assert re.search(
            rf"^{name}.* +\d+\.\d{{3}} +\d+\.\d{{3}} +\d+\.\d%$", printed, re.MULTILINE
        )
    assert "of the roofline" in printed
    assert re.search(r"^/host:CPU: \d+\.\d% busy", printed, re.MULTILINE)
    record = json.loads(target.read_text())
    tokens = [step["num_tokens"] for step in record["steps"]]
    # Two prompts of 8, and the three of each answer's four tokens that are read again.
    assert sum(tokens) == record["profile"]["tokens"] == 2 * 8 + 2 * 3
    assert record["profile"]["flops"] > 0
    assert record["devices"][0]["operations"]
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def engine_of(process: subprocess.Popen[str]) -> psutil.Process:
    """The engine's process of a server."""
    children = psutil.Process(process.pid).children()
    (engine,) = [each for each in children if "jaxserve.commands.engine_process" in each.cmdline()]
    return engine


def complete(url: str) -> Any:
    """Return a greedy answer; None if the server cannot answer."""
    body = json.dumps({"prompt": "Once", "max_tokens": 8, "temperature": 0}).encode()
    ask = Request(f"{url}/v1/completions", body, {"content-type": "application/json"})
    try:
        with urlopen(ask, timeout=60) as answer:
            return json.load(answer)["choices"]
    except HTTPError:
        return None


def test_serve_answers_survives_its_engine_and_ends_with_status_0_when_told_to(model: str) -> None:
    command = [sys.executable, "-m", "jaxserve", "serve", model, *SMALL, "--port", "0"]
    names = ["--served-model-name", "stories", "tales"]
    with subprocess.Popen(
        [*command, *names], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            url = re.search(r"serves stories, tales at (http://127\.0\.0\.1:\d+)$", ready)
            assert url is not None, ready
            with urlopen(f"{url[1]}/v1/models", timeout=30) as answer:
                models = json.load(answer)["data"]
            assert [found["id"] for found in models] == ["stories", "tales"]
            before = complete(url[1])
            assert before is not None
            engine_of(process).kill()
            again, deadline_s = None, time.monotonic() + 120
            while again is None and time.monotonic() < deadline_s:
                time.sleep(0.1)
                again = complete(url[1])
            assert again == before
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
