"""Compiling every program of a planned engine, and what each turns out to need."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxserve.errors import ConfigError
from jaxserve.execution.cost import Cost, helper_cost, step_cost
from jaxserve.execution.executables import ExecutableWriter
from jaxserve.execution.programs import Helper, Program, all_programs, name_of
from jaxserve.models import Params, abstract_params
from jaxserve.planning import EnginePlan

# What was measured on a device, for those who compile without one: a file per target.
_RECORDED = Path(__file__).parent / "assets" / "autotuning"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device. total: what is in use while the program runs.

    That is weights, cache and slot state, whether it touches them or not, and beside them its
    temporaries, its results and its code.
    """

    arguments: int
    aliased: int
    temporaries: int
    total: int


@dataclass(frozen=True, kw_only=True)
class ProgramReport:
    """A program that was compiled, or why it could not be.

    fits: whether it stays within what may be used of the device. tuning: how XLA chose the kernels
    of matrix products: "measured", "defaults", or "3 of 5" where so many are in the measurements
    it was given; None where it does not measure. size: of the file, where one was written.
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
    out: Path | None = None,
    autotune_results: Path | None = None,
    record_autotuning: Path | None = None,
) -> Iterator[ProgramReport]:
    """Compile every program of a plan, and report on each when it is done; nothing is allocated.

    context_len: tokens of the sequences that costs are counted for. out: a new folder for the
    programs. autotune_results: what `record_autotuning` wrote on such a device; by default the
    file that jaxserve brings, if it does. Raises ConfigError for what cannot be read or written.
    """
    tuner = _Tuner(plan, results=autotune_results, record=record_autotuning)
    writer = None if out is None else ExecutableWriter(out, plan.key)
    params = abstract_params(plan.model, dtype=plan.dtype, mesh=plan.context.mesh)
    for program in all_programs(plan.shapes):
        cost = _cost(plan, program, params=params, context_len=context_len)
        start_s = time.perf_counter()
        try:
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
    if writer is not None:
        writer.close()


def _cost(plan: EnginePlan, program: Program, *, params: Params, context_len: int) -> Cost:
    if isinstance(program, Helper):
        return helper_cost(plan.programs, program)
    return step_cost(
        plan.model,
        program,
        params=params,
        attention=plan.context.attention,
        context_len=context_len,
    )


def _memory(plan: EnginePlan, program: Program, compiled: jax.stages.Compiled) -> Memory:
    # Any: XLA's own object. Every platform that jaxserve knows has one.
    found: Any = compiled.memory_analysis()
    kept = plan.memory.weights
    if program is not Helper.ALLOCATE:  # which returns cache and state as results
        kept += plan.memory.cache + plan.memory.state
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(
        arguments=found.argument_size_in_bytes,
        aliased=found.alias_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        total=kept + results + found.temp_size_in_bytes + found.generated_code_size_in_bytes,
    )


def _reason(message: str) -> str:
    """Return the first line of what XLA says, and of memory what it would take."""
    used = re.search(r"Used [\d.]+\w of [\d.]+\w hbm", message)
    return used[0] if used else message.partition("\n")[0]


class _Tuner:
    """Compiles for a plan, with XLA's choices of kernels for NVIDIA GPUs read or written.

    XLA times candidates on the device it compiles for. For one that is absent it takes defaults,
    but for those in a file of such timings.
    """

    def __init__(self, plan: EnginePlan, *, results: Path | None, record: Path | None) -> None:
        target = plan.context.attention.target
        self._programs = plan.programs
        self._is_gpu = target.platform == "cuda"
        self._is_absent = plan.is_absent
        asked = results if results is not None else record
        if asked is not None and not self._is_gpu:
            raise ConfigError(f"autotuning is for NVIDIA GPUs, got target {target.name}")
        if record is not None and plan.is_absent:
            raise ConfigError(f"record_autotuning needs the device itself; {target.name} is absent")
        if results is not None and not results.is_file():
            raise ConfigError(f"autotune_results must be a file, got {results}")
        if results is None and plan.is_absent:
            recorded = _RECORDED / f"{target.name}.txt"
            results = recorded if recorded.is_file() else None
        self._results = results
        self._options: dict[str, Any] = {}
        if results is not None:
            self._options["xla_gpu_load_autotune_results_from"] = str(results)
        if record is not None:
            self._options["xla_gpu_dump_autotune_results_to"] = str(record)

    def compile(self, params: Params, program: Program) -> tuple[jax.stages.Compiled, str | None]:
        """Compile a program; tell how the kernels of its matrix products were chosen."""
        if not self._is_gpu or not self._is_absent:
            compiled = self._programs.compile(params, program, options=self._options)
            return compiled, "measured" if self._is_gpu else None
        if self._results is None:
            return self._programs.compile(params, program), "defaults"
        complete = {"xla_gpu_require_complete_aot_autotune_results": True}
        try:
            compiled = self._programs.compile(params, program, options=self._options | complete)
        except jax.errors.JaxRuntimeError as error:
            missing = re.search(r"Failed to get configs for: (\d+) out of (\d+)", str(error))
            if missing is None:
                raise
            compiled = self._programs.compile(params, program, options=self._options)
            return compiled, f"{int(missing[2]) - int(missing[1])} of {missing[2]}"
        return compiled, "measured"
