"""Steps of real widths, compiled with their kernels for accelerators that are not there.

They need the compiler of the accelerator, a plugin of JAX, and a process for each target:
`make compile-check` sees to both.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import pytest

from jaxserve.config.engine import EngineOptions
from jaxserve.errors import MemoryPlanError
from jaxserve.execution.memory import tree_bytes
from jaxserve.execution.programs import Helper, Program, name_of
from jaxserve.execution.shapes import FULL, GREEDY, SCORE, StepShape
from jaxserve.loading.published import published
from jaxserve.planning.engine_plan import EnginePlan
from jaxserve.planning.planner import plan_engine
from jaxserve.planning.precompile import Tuner
from pallas_kernels.targets import find_target
from pallas_kernels.topology import TopologyError, absent_devices

# How a program calls a kernel that Pallas compiled.
_KERNEL = {"cuda": "mosaic_gpu", "tpu": "tpu_custom_call"}
_PAGES = 128  # of 64 tokens
_DECODE = StepShape(64, 64, _PAGES, GREEDY)
_SAMPLE = StepShape(64, 64, _PAGES, FULL, branches=True)
_MIXED = StepShape(2048, 64, _PAGES, SCORE, branches=True)
# Targets, devices, programs. A kernel for TPUs takes half a minute to compile: no more than tell
# something new.
_CASES: list[tuple[str, int, Program]] = [
    *(("h200", 1, program) for program in (_DECODE, _SAMPLE, _MIXED, *Helper)),
    *(("h200", 4, program) for program in (_DECODE, _MIXED)),
    *(("b200", 1, program) for program in (_DECODE, _MIXED)),
    *(("a100", 1, program) for program in (_DECODE, _MIXED)),
    *(("v5e", 1, program) for program in (_DECODE, _MIXED, *Helper)),
    *(("v5e", 4, program) for program in (_DECODE, _MIXED)),
    *(("v6e", 1, program) for program in (_DECODE,)),
    *(("v7x", 2, program) for program in (_DECODE,)),
]
_STEPS = [case for case in _CASES if isinstance(case[2], StepShape)]
_HELPERS = [case for case in _CASES if isinstance(case[2], Helper)]
_NUM_LAYERS = 2  # enough for one to differ from the next


@dataclass(frozen=True)
class Compiled:
    """A compiled program, and the plan it is of."""

    plan: EnginePlan
    program: Program
    compiled: jax.stages.Compiled

    @property
    def memory(self) -> Any:
        return self.compiled.memory_analysis()

    @property
    def text(self) -> str:
        text = self.compiled.as_text()
        assert text is not None
        return text


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Llama 3.1 8B, but for its number of layers."""
    config = json.loads(published()["llama-3.1-8b"].read_text("utf-8"))
    file = tmp_path_factory.mktemp("model") / "config.json"
    file.write_text(json.dumps(config | {"num_hidden_layers": _NUM_LAYERS}), "utf-8")
    return str(file)


def needs_compiler(name: str, num_devices: int) -> None:
    """Skip a test where JAX cannot compile for a target."""
    try:
        absent_devices(find_target(name), num_devices)
    except TopologyError as error:
        pytest.skip(str(error))


@cache
def plan_for(model: str, name: str, num_devices: int) -> EnginePlan:
    needs_compiler(name, num_devices)
    options = EngineOptions(
        model=model,
        tensor_parallel_size=num_devices,
        max_model_len=8192,
        max_num_seqs=64,
        max_num_batched_tokens=2048,
        page_size=64,
        num_pages=8192 * num_devices,  # 2 GiB a layer and device: a copy of one cannot hide
    )
    return plan_engine(options, target=name)


@cache
def compiled_for(model: str, name: str, num_devices: int, program: Program) -> Compiled:
    plan = plan_for(model, name, num_devices)
    params = plan.abstract_params()
    return Compiled(plan, program, Tuner(plan).compile(params, program)[0])


def name(case: tuple[str, int, Program]) -> str:
    return f"{case[0]}x{case[1]}-{name_of(case[2])}"


@pytest.fixture(params=_STEPS, ids=name)
def step(request: pytest.FixtureRequest, model: str) -> Compiled:
    return compiled_for(model, *request.param)


def test_a_kernel_attends_in_every_layer(step: Compiled) -> None:
    assert step.plan.context.attention.backend != "reference"
    kernel = _KERNEL[step.plan.context.attention.target.platform]
    calls = [line for line in step.text.splitlines() if "custom-call" in line and kernel in line]
    assert len(calls) >= _NUM_LAYERS


def test_cache_and_state_are_updated_in_place(step: Compiled) -> None:
    programs = step.plan.programs
    kept = tree_bytes(programs.cache) + tree_bytes(programs.state)
    # Devices may pad arrays; then more is aliased than there is.
    assert step.memory.alias_size_in_bytes >= kept


def test_no_temporary_is_as_large_as_half_a_layers_cache(step: Compiled) -> None:
    layer = tree_bytes(step.plan.programs.cache[0])
    assert step.memory.temp_size_in_bytes < layer // 2


def test_no_cache_is_copied(step: Compiled) -> None:
    assert not list(copies(step.text, step.plan.programs.cache[0]))


def copies(text: str, array: jax.ShapeDtypeStruct) -> Iterator[str]:
    """Yield the lines of a program in which as many numbers as an array holds are copied."""
    assert array.sharding is not None
    sizes = sorted(array.sharding.shard_shape(array.shape))
    for line in text.splitlines():
        name, _, instruction = line.partition(" = ")
        if any(f" {word}(" in instruction for word in ("copy", "copy-start", "transpose")):
            shape = instruction.partition("[")[2].partition("]")[0]
            if sorted(int(size) for size in shape.split(",") if size) == sizes:
                yield name


def test_weights_are_read_where_they_lie(step: Compiled) -> None:
    """XLA for GPUs would rather join the projections of q, k and v: 50 MB copied in a layer."""
    if step.program != _DECODE or step.plan.context.attention.target.platform != "cuda":
        pytest.skip("other temporaries are larger than what would be copied")
    logits = _DECODE.sequences * step.plan.model.vocab_size * 4
    assert step.memory.temp_size_in_bytes < 1.4 * logits


def test_the_plan_holds_what_a_step_takes(step: Compiled) -> None:
    """The workspace, estimated before anything is compiled, is no less than the temporaries."""
    assert step.memory.temp_size_in_bytes <= step.plan.memory.workspace


@pytest.mark.parametrize("case", _HELPERS, ids=name)
def test_cache_and_state_are_made_and_remembered_without_temporaries(
    model: str, case: tuple[str, int, Program]
) -> None:
    assert compiled_for(model, *case).memory.temp_size_in_bytes < 1 << 20


@pytest.mark.parametrize("name", ["v5e"])
def test_a_model_that_does_not_fit_is_refused_before_it_is_compiled(name: str) -> None:
    needs_compiler(name, 1)
    with pytest.raises(MemoryPlanError, match=r"weights 14\.96 GiB.* of 14\.40 GiB usable"):
        plan_engine(EngineOptions(model="llama-3.1-8b"), target=name)
