"""vLLM's command lines: flags without an effect, other spellings, and suggestions."""

import argparse
import json
import shlex
from pathlib import Path

import pytest

from jaxserve.cli import _parser
from jaxserve.config.flags import ENGINE_FLAGS, SERVER_FLAGS, engine_options, server_config
from jaxserve.config.vllm_flags import INERT_FLAGS, split_inert
from jaxserve.errors import ConfigError


def serve(line: str) -> tuple[dict[str, object], list[str]]:
    """Return the values and the notes of `jaxserve serve` with a line of arguments."""
    args = vars(_parser().parse_args(["serve", *shlex.split(line)]))
    return args, args["notes"]


# Every flag of `vllm serve` 0.32, a line each, with its other spellings behind it.
FLAGS_OF_VLLM = (Path(__file__).parent / "vllm_serve_flags.txt").read_text("utf-8").splitlines()


def spellings(command: str) -> dict[str, argparse.Action]:
    """Return what flags of a command may be called, and what each does."""
    [commands] = (
        action.choices
        for action in _parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return dict(commands[command]._option_string_actions)


def refusal(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line with which a command line is refused."""
    with pytest.raises(SystemExit) as stopped:
        serve(line)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    "line",
    [
        # As in vLLM's recipes, its Helm chart and blog posts.
        "org/model --enforce-eager --trust-remote-code --max-model-len 4096",
        "--model org/model --disable-log-requests --swap-space 4 --gpu-memory-utilization 0.92",
        "m -tp 2 -dp 1 -pp 1 --enable-chunked-prefill --max-num-seqs 64 -O3",
        "m --distributed-executor-backend mp --compilation-config '{\"level\": 3}'",
        "m --compilation-config.cudagraph_mode FULL --cudagraph-capture-sizes 1 2 4 8",
        "m --no-enable-log-requests --enable-prompt-tokens-details --enable-request-id-headers",
        "m --limit-mm-per-prompt '{\"image\": 0}' --mm-processor-cache-gb 0",
        "m --guided-decoding-backend xgrammar",
        "m -ep -dpl 1 -dpb mp -n 1 -r 0 --additional-config {}",
        "m --max_num_batched_tokens=8k --data_parallel_size=1 --max_model_len 8K",
    ],
)
def test_a_command_line_of_vllms_is_accepted_with_a_note_for_each_flag_without_effect(
    line: str,
) -> None:
    args, notes = serve(line)
    inert = {flag.name for flag in INERT_FLAGS}
    assert notes
    assert all(note.removeprefix("--").split()[0] in inert for note in notes)
    assert len(notes) == len(set(notes))
    assert (args["model"] or args["model_flag"]) in {"org/model", "m"}


def test_underscores_in_names_are_dashes_and_values_are_left_alone() -> None:
    args, _ = serve("m --served_model_name my_model --max_num_seqs=8 --chat-template=a_b.jinja")
    assert args["served_model_name"] == ["my_model"]
    assert args["max_num_seqs"] == 8
    assert args["chat_template"] == "a_b.jinja"


@pytest.mark.parametrize("value", ["auto", "-1"])
def test_a_context_may_be_left_to_the_memory(value: str) -> None:
    args, _ = serve(f"m --max-model-len={value}")
    assert args["max_model_len"] is None
    assert engine_options(None, {"max_model_len": -1}).max_model_len is None


def test_dotted_flags_make_one_json_object() -> None:
    args, _ = serve(
        "m --pooler-config.pooling_type MEAN --pooler-config.use_activation=false"
        " --pooler-config.outer.inner 3 --port 1"
    )
    assert args["pooler_config"] == {
        "pooling_type": "MEAN",
        "use_activation": False,
        "outer": {"inner": 3},
    }
    assert args["port"] == 1


def test_a_dotted_flag_without_a_value_is_a_switch() -> None:
    args, _ = serve("m --pooler-config.use_activation --port 1")
    assert args["pooler_config"] == {"use_activation": True}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("m --data-parallel-size 2", "--data-parallel-size must be 1, got 2: a server has one"),
        ("m -pp 4", "--pipeline-parallel-size must be 1, got 4"),
        ("m -dcp 2", "--decode-context-parallel-size must be 1, got 2"),
        ("m --lora-modules a=b c=d", "--lora-modules is not supported: adapters"),
        ("m --hf-token secret", "--hf-token is not supported: HF_TOKEN in the environment"),
        ("m --max-num-queued-tokens 5", "--max-queued-requests bounds the queue"),
        ("m --enable-lora", "--enable-lora is not supported: adapters"),
        ("m --cpu-offload-gb 10", "--cpu-offload-gb must be 0 or 0.0, got 10"),
        ('m --speculative-config \'{"method": "ngram"}\'', "speculative decoding"),
        ("m --otlp-traces-endpoint http://x", "--otlp-traces-endpoint is not supported: traces"),
    ],
)
def test_a_value_that_would_change_what_is_served_is_refused(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refusal(line, capsys)


@pytest.mark.parametrize(
    ("line", "near"),
    [
        ("m --max-model-length 8", "--max-model-len"),
        ("m --gpu-memory-utilisation=0.5", "--gpu-memory-utilization"),
        ("m --tensor_parallel 2", "--tensor-parallel-size"),
        ("m --enable-log-request", "--enable-log-requests"),
    ],
)
def test_an_unknown_flag_suggests_the_nearest(
    line: str, near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"did you mean {near}?" in refusal(line, capsys)


def test_a_flag_like_no_other_has_no_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean" not in refusal("m --xyzzy", capsys)


def test_keywords_of_llm_without_effect_are_left_out_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = engine_options(None, {"enforce_eager": True, "swap_space": 4, "max_num_seqs": 8})
    assert options.max_num_seqs == 8
    assert len(caplog.messages) == 2
    with pytest.raises(ConfigError, match="pipeline_parallel_size must be 1, got 2"):
        engine_options(None, {"pipeline_parallel_size": 2})


def test_every_inert_flag_takes_a_value_that_it_allows_and_is_no_flag_of_ours() -> None:
    ours = {flag.keyword for flag in (*ENGINE_FLAGS, *SERVER_FLAGS)}
    for flag in INERT_FLAGS:
        assert flag.keyword not in ours
        if flag.allowed == ():
            with pytest.raises(ConfigError, match="is not supported"):
                split_inert({flag.keyword: "x"})
        for value in (True, "x") if flag.allowed is None else flag.allowed:
            kept, notes = split_inert({flag.keyword: value})
            assert not kept
            assert len(notes) == 1
    assert len({flag.name for flag in INERT_FLAGS}) == len(INERT_FLAGS)


def test_every_flag_of_vllm_serve_is_known() -> None:
    known = spellings("serve")
    assert len(FLAGS_OF_VLLM) > 300
    assert [line for line in FLAGS_OF_VLLM if not known.keys() >= {*line.split()}] == []


def test_short_names_are_those_of_the_same_flags() -> None:
    known = spellings("serve")
    differ = [line for line in FLAGS_OF_VLLM if len({known[name] for name in line.split()}) != 1]
    assert differ == []


def test_the_short_name_of_quantization_is_that_of_the_message_in_a_chat() -> None:
    assert spellings("serve")["-q"].dest == "quantization"
    assert spellings("chat")["-q"].dest == "message"
    assert "--quantization" in spellings("chat")


def test_run_batch_has_the_flags_of_vllms() -> None:
    own = {"--input-file", "--output-file", "--output-tmp-dir", "--enable-metrics", "--port"}
    assert own | {f"--{flag.name}" for flag in INERT_FLAGS} <= spellings("run-batch").keys()


def test_a_config_file_may_hold_flags_without_effect(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"enforce-eager": True, "max_num_seqs": 4, "swap-space": 4}))
    args, notes = serve(f"m --config {config}")
    assert args["max_num_seqs"] == 4
    assert len(notes) == 2


@pytest.mark.parametrize(
    ("variables", "keys"),
    [
        ({}, ()),
        ({"VLLM_API_KEY": "theirs"}, ("theirs",)),
        ({"VLLM_API_KEY": "theirs", "JAXSERVE_API_KEY": "ours"}, ("ours",)),
    ],
)
def test_the_key_that_vllm_takes_from_the_environment_is_wanted_of_clients(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], keys: tuple[str, ...]
) -> None:
    for name in ("VLLM_API_KEY", "JAXSERVE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert server_config({}).api_keys == keys
    assert server_config({"api_key": ("given",)}).api_keys == ("given",)
