"""`jaxserve compile` and `plan --target`, on a CPU: what they print, write and refuse."""

import json
import re
import shutil
from pathlib import Path

import jax
import pytest

from jaxserve.cli import main
from jaxserve.execution.attention import plan_attention
from jaxserve.execution.cost import Cost, step_cost
from jaxserve.execution.memory import usable_bytes
from jaxserve.execution.shapes import FULL, GREEDY, StepShape
from jaxserve.loading.checkpoint import Checkpoint
from jaxserve.loading.published import published
from jaxserve.models import abstract_params, config_from_hf
from jaxserve.parallel.sharding import ShardingPlan, make_mesh
from jaxserve.quantization import WeightLayout
from pallas_kernels.targets import CPU, Target, find_target
from pallas_kernels.topology import TopologyError, absent_devices
from tests.data import checkpoint

SMALL = ("--max-num-seqs", "2", "--max-num-batched-tokens", "32", "--max-model-len", "128")
# As published; shapes are facts, so a slip in a table of ours would show here.
PARAMETERS = {
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_419_200,  # without the layer that predicts a second token
    "gemma-3-27b": 27_009_346_304,
    "gpt-oss-20b": 20_914_757_184,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-32b": 32_762_123_264,
    "qwen3.5-35b-a3b": 34_660_610_688,
}


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A configuration without weights, as a file."""
    file = tmp_path / "small.json"
    shutil.copy(checkpoint("stories260K-hf") / "config.json", file)
    return str(file)


@pytest.mark.parametrize("name", published())
def test_published_models_have_as_many_parameters_as_published(name: str) -> None:
    config = config_from_hf(Checkpoint.open(name).hf_config)
    params = jax.tree.leaves(abstract_params(config, WeightLayout(dtype="bfloat16")))
    assert sum(param.size for param in params) == PARAMETERS[name]


def test_every_program_is_compiled_from_a_bare_configuration(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, found = tmp_path / "out", tmp_path / "found.json"
    paths = ("--out", str(out), "--json", str(found))
    assert main(["compile", config, *SMALL, "--target", "cpu", "--tp", "2", *paths]) == 0
    printed = capsys.readouterr().out
    names = ["32x2-score", "allocate", "assign", "deferred-2", "decode-1-full", "decode-2-full"]
    names.append("deferred-1")
    assert re.findall(r"^(\S+) +[\d.]+ s .* yes .*$", printed, re.MULTILINE) == names
    assert "7 of 7 programs compiled in" in printed
    assert "every step updates KV pages and slot state in place" in printed
    assert "all fit" in printed

    record = json.loads(found.read_text("utf-8"))
    assert [program["name"] for program in record["programs"]] == names
    for program in record["programs"]:
        file = out / f"{program['name']}.bin"
        assert file.stat().st_size == program["size"]
        assert program["memory"]["total"] <= record["plan"]["limit"]
    state = record["plan"]["state"]
    kept = record["plan"]["num_pages"] * record["plan"]["page"] + state
    aliased = {each["name"]: each["memory"]["aliased"] for each in record["programs"]}
    assert aliased.pop("deferred-1") == aliased.pop("deferred-2") == state
    assert {size for name, size in aliased.items() if "-" in name} == {kept}
    assert record["key"]["tensor_parallel_size"] == 2


def test_some_programs_are_compiled_where_names_are_given(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", config, *SMALL, "--only", "ass*", "allocate"]) == 0
    assert "2 of 2 programs compiled" in capsys.readouterr().out
    assert main(["compile", config, *SMALL, "--only", "decode-3-full"]) == 1
    assert "only must match at least one of 32x2-score, allocate" in capsys.readouterr().err


def test_a_program_that_needs_more_than_there_is_does_not_fit(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxserve.planning.parts.workspace_bytes", lambda *_, **__: 0)
    monkeypatch.setattr("jaxserve.planning.hardware.usable_bytes", lambda *_, **__: 2_000_000)
    # The reference copies what it attends to.
    needy = ("--attention-backend", "reference", "--only", "32x2-score")
    assert main(["compile", config, *SMALL, *needy]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"^32x2-score .* NO ", printed, re.MULTILINE)
    assert "programs that do not fit: 32x2-score" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "h900"], "target must be one of h100, h200"),
        (["--autotune-results", "x.txt"], "autotuning is for NVIDIA GPUs, got target cpu"),
        (["--record-autotuning", "x.txt"], "autotuning is for NVIDIA GPUs, got target cpu"),
        (["--out", "."], "out must be an empty or a new folder"),
    ],
)
def test_what_cannot_be_compiled_is_refused_with_the_reason(
    config: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", config, *SMALL, *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("jaxserve: error: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err


def test_a_target_whose_compiler_is_missing_says_what_to_install(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, extra in (("h200", "jax[cuda13]"), ("v5e", "jax[tpu]")):
        try:
            absent_devices(find_target(name), 1)
        except TopologyError:
            assert main(["plan", config, "--target", name]) == 1
            said = capsys.readouterr().err
            assert f"compiling for {name} needs its compiler: install {extra}" in said


def test_a_bare_configuration_is_planned_and_not_run(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", config, *SMALL, "--target", "cpu"]) == 0
    assert "KV pages" in capsys.readouterr().out
    assert main(["generate", config, *SMALL, "--prompt", "x"]) == 1
    assert "without weights a model can be planned and compiled" in capsys.readouterr().err


class Gpu:
    """As much of a device as a memory plan asks."""

    platform = "gpu"

    def memory_stats(self) -> dict[str, int]:
        return {"bytes_limit": 900_000}


def test_a_gpus_pool_keeps_some_slack_whether_the_gpu_is_there_or_not() -> None:
    present = usable_bytes([Gpu()], 0.9)
    absent = usable_bytes([Gpu()], 0.9, memory_bytes=1_000_000)
    assert present == absent == 873_000


HARDWARE = Target(name="x", platform="tpu", architecture="x", cores=1, bandwidth=1e12, flops=100e12)


def test_a_roofline_is_the_longer_of_two_times_and_says_which() -> None:
    reads = Cost(flops=100_000_000_000, read_bytes=1_500_000_000, written_bytes=500_000_000)
    assert reads.seconds(HARDWARE) == 0.002
    assert reads.bound(HARDWARE) == "memory"
    computes = Cost(flops=400_000_000_000, read_bytes=2_000_000_000)
    assert computes.seconds(HARDWARE) == 0.004
    assert computes.bound(HARDWARE) == "compute"
    assert (reads.seconds(CPU), reads.bound(CPU)) == (None, None)


def count(shape: StepShape, *, context_len: int, devices: int = 1) -> Cost:
    """Count a step of Llama 3.1 8B."""
    model = config_from_hf(Checkpoint.open("llama-3.1-8b").hf_config)
    attention = plan_attention(
        model,
        dtype="bfloat16",
        cache_dtype="bfloat16",
        page_size=16,
        target=CPU,
        devices=devices,
    )
    layout = WeightLayout(dtype="bfloat16", sharding=ShardingPlan(make_mesh(devices)))
    params = abstract_params(model, layout)
    return step_cost(model, shape, params=params, attention=attention, context_len=context_len)


# Numbers of weights of all layers and of the head.
LAYERS = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
HEAD = 4096 * 128256
NORMS = 65 * 4096
TOKEN_BYTES = 2 * 8 * 128 * 2  # keys and values of a token, in a layer


def test_a_decode_step_is_counted_as_by_hand() -> None:
    cost = count(StepShape(4, 4, 16, GREEDY), context_len=200)
    attention = 32 * 4 * 32 * 128 * 200
    assert cost.flops == 4 * (2 * (LAYERS + HEAD) + attention)
    weights = 2 * (LAYERS + HEAD + NORMS)
    assert cost.num_bytes == weights + 4 * (
        4096 * 2 + 32 * TOKEN_BYTES * (200 + 1) + 2 * 128256 * 4
    )


def test_a_prompt_is_read_once_and_sees_itself_causally() -> None:
    cost = count(StepShape(64, 1, 16, GREEDY), context_len=1)
    pairs = 64 * 65 // 2
    assert cost.flops == 64 * 2 * LAYERS + 2 * HEAD + 32 * 4 * 32 * 128 * pairs
    more = count(StepShape(64, 1, 16, GREEDY), context_len=65)
    assert more.num_bytes - cost.num_bytes == 32 * TOKEN_BYTES
    assert more.flops - cost.flops == 32 * 4 * 32 * 128 * 64


def test_devices_share_weights_heads_and_cache() -> None:
    shape = StepShape(8, 8, 16, GREEDY)
    alone, quarter = (count(shape, context_len=200, devices=devices) for devices in (1, 4))
    assert quarter.flops == alone.flops // 4
    # But for norms, embedded tokens and logits, which every device has whole.
    whole = 2 * NORMS + 8 * (4096 * 2 + 2 * 128256 * 4)
    assert 4 * (quarter.num_bytes - whole) == alone.num_bytes - whole


def test_what_slots_remember_is_read_where_it_is_used() -> None:
    greedy, full = (
        count(StepShape(8, 8, 16, features), context_len=200) for features in (GREEDY, FULL)
    )
    assert full.num_bytes - greedy.num_bytes == 8 * 128256 * 9
    assert full.flops == greedy.flops
