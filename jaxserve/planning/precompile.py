"""Compile every program of an engine plan and report what each needs."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jax

from jaxserve.errors import ConfigError
from jaxserve.execution.compilation import without_compilation_cache
from jaxserve.execution.cost import Cost, deferred_sample_cost, helper_cost, step_cost
from jaxserve.execution.executables import ExecutableWriter
from jaxserve.execution.programs import Helper, Program, all_programs, name_of
from jaxserve.execution.shapes import DeferredSampleShape
from jaxserve.models import Params
from jaxserve.planning.engine_plan import EnginePlan

# Autotuning results recorded on devices, for compiling without one: a file per target.
_RECORDED = Path(__file__).parents[1] / "assets" / "autotuning"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of one device in bytes.

    total: in use while the program runs: weights, cache and slot state, whether the program uses
    them or not, and its temporaries, results and code.
    """

    arguments: int
    aliased: int
    temporaries: int
    total: int


@dataclass(frozen=True, kw_only=True)
class ProgramReport:
    """Result of compiling a program. error: why it failed, or None.

    fits: whether it fits into the usable memory of the device. tuning: how XLA selected matmul
    kernels on a GPU: "measured" or "heuristics"; None on other devices. size: bytes of the file, if
    one was written.
    """

    name: str
    compile_s: float
    cost: Cost
    memory: Memory | None = None
    fits: bool = False
    tuning: str | None = None
    size: int | None = None
    error: str | None = None


def precompile(
    plan: EnginePlan,
    *,
    context_len: int,
    only: Sequence[str] = (),
    out: Path | None = None,
    autotune_results: Path | None = None,
    record_autotuning: Path | None = None,
) -> Iterator[ProgramReport]:
    """Compile every program of a plan and yield a report for each. Allocates nothing on devices.

    context_len: tokens per sequence for estimated costs. only: name patterns of programs to
    compile, by default all. out: new folder for the programs. autotune_results: file written with
    `record_autotuning` on such a device; by default the one in the package, if any. Raises
    ConfigError for files that cannot be read or written.
    """
    tuner = Tuner(plan, results=autotune_results, record=record_autotuning)
    writer = None if out is None else ExecutableWriter(out, plan.key)
    params = plan.abstract_params()
    for program in _chosen(plan, only):
        cost = _cost(plan, program, params=params, context_len=context_len)
        start_s = time.perf_counter()
        try:
            with nullcontext() if writer is None else without_compilation_cache():
                compiled, tuning = tuner.compile(params, program)
        except jax.errors.JaxRuntimeError as error:
            elapsed_s = time.perf_counter() - start_s
            yield ProgramReport(
                name=name_of(program), compile_s=elapsed_s, cost=cost, error=_reason(str(error))
            )
            continue
        elapsed_s = time.perf_counter() - start_s
        memory = _memory(plan, program, compiled)
        yield ProgramReport(
            name=name_of(program),
            compile_s=elapsed_s,
            cost=cost,
            memory=memory,
            fits=memory.total <= plan.memory.limit,
            tuning=tuning,
            size=None if writer is None else writer.add(program, compiled),
        )
        # A program may take a hundred megabytes, and JAX would cache them all.
        del compiled
        jax.clear_caches()
    if writer is not None:
        writer.close()


def _chosen(plan: EnginePlan, patterns: Sequence[str]) -> list[Program]:
    programs = all_programs(plan.shapes)
    for pattern in patterns:
        if not any(fnmatchcase(name_of(program), pattern) for program in programs):
            names = ", ".join(map(name_of, programs))
            raise ConfigError(f"only must match at least one of {names}; got {pattern!r}")
    return [
        program
        for program in programs
        if not patterns or any(fnmatchcase(name_of(program), pattern) for pattern in patterns)
    ]


def _cost(plan: EnginePlan, program: Program, *, params: Params, context_len: int) -> Cost:
    if isinstance(program, Helper):
        return helper_cost(plan.programs, program)
    if isinstance(program, DeferredSampleShape):
        return deferred_sample_cost(plan.model, program, params=params)
    return step_cost(
        plan.model,
        program,
        params=params,
        attention=plan.context.attention,
        context_len=context_len,
    )


def _memory(plan: EnginePlan, program: Program, compiled: jax.stages.Compiled) -> Memory:
    # Any: an object of XLA, available on every supported platform.
    found: Any = compiled.memory_analysis()
    kept = plan.memory.weights
    if program is not Helper.ALLOCATE:  # whose results are cache and state
        kept += plan.memory.cache + plan.memory.state
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(
        arguments=found.argument_size_in_bytes,
        aliased=found.alias_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        total=kept + results + found.temp_size_in_bytes + found.generated_code_size_in_bytes,
    )


def _reason(message: str) -> str:
    """Return the first line of an XLA error, or the memory that it would need."""
    used = re.search(r"Used [\d.]+\w of [\d.]+\w hbm", message)
    return used[0] if used else message.partition("\n")[0]


class Tuner:
    """Compiles programs, and reads or writes XLA's autotuning results for NVIDIA GPUs.

    XLA times kernel candidates on the device. For an absent device it takes the first that
    compiles, unless a results file is complete. Among Triton's tilings that is a very slow one
    (16 x 8 in jaxlib 0.11.2), so Triton matmuls are disabled and cuBLAS selects its kernels by
    heuristics.
    """

    def __init__(
        self, plan: EnginePlan, *, results: Path | None = None, record: Path | None = None
    ) -> None:
        """Select the source of kernel choices. results, record: see `precompile`."""
        target = plan.context.attention.target
        self._programs = plan.programs
        self._is_gpu = target.platform == "cuda"
        if (results is not None or record is not None) and not self._is_gpu:
            raise ConfigError(f"autotuning is for NVIDIA GPUs, got target {target.name}")
        if record is not None and plan.is_absent:
            raise ConfigError(f"record_autotuning needs the device itself: {target.name} is absent")
        if results is not None and not results.is_file():
            raise ConfigError(f"autotune_results must be a file, got {results}")
        recorded = _RECORDED / f"{target.name}.txt"
        if results is None and plan.is_absent and recorded.is_file():
            results = recorded
        self._measured: dict[str, Any] | None = None
        if self._is_gpu and not plan.is_absent:
            self._measured = {}
        if results is not None:
            self._measured = {"xla_gpu_load_autotune_results_from": str(results)}
            if plan.is_absent:
                self._measured["xla_gpu_require_complete_aot_autotune_results"] = True
        if self._measured is not None and record is not None:
            self._measured["xla_gpu_dump_autotune_results_to"] = str(record)

    def compile(self, params: Params, program: Program) -> tuple[jax.stages.Compiled, str | None]:
        """Compile a program. Return it and how its matmul kernels were selected."""
        if not self._is_gpu:
            return self._programs.compile(params, program), None
        if self._measured is not None:
            try:
                return self._programs.compile(params, program, options=self._measured), "measured"
            except jax.errors.JaxRuntimeError as error:
                if "No cached config found" not in str(error):
                    raise
        heuristics = {"xla_gpu_enable_triton_gemm": False}
        return self._programs.compile(params, program, options=heuristics), "heuristics"
