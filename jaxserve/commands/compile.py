"""`jaxserve compile`: compile every program of an engine, also for absent hardware."""

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from jaxserve.commands.arguments import add_engine_arguments, add_target, model_of
from jaxserve.config.flags import ENGINE_FLAGS, engine_options, given
from jaxserve.config.values import number

if TYPE_CHECKING:
    from jaxserve.planning.engine_plan import EnginePlan
    from jaxserve.planning.precompile import ProgramReport

HELP = "compile a model's programs, also for absent hardware"
_CONTEXT_LEN = 1024
_COLUMNS = (
    f"{'program':<20}{'compile':>9}{'arguments':>12}{'aliased':>12}{'temporary':>12}  fits"
    f"{'GFLOP':>11}{'GB':>9}{'roofline':>11}           tuning"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_engine_arguments(parser)
    group = parser.add_argument_group("compilation")
    add_target(group)
    group.add_argument(
        "--only",
        nargs="+",
        default=(),
        metavar="PATTERN",
        help="compile only programs with matching names, such as 'decode-*-greedy'",
    )
    group.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write the programs to this folder, for --executables",
    )
    group.add_argument("--json", type=Path, metavar="FILE", help="write the report to this file")
    group.add_argument(
        "--context-len",
        type=number,
        metavar="N",
        help=f"tokens per sequence for estimated costs (default: {_CONTEXT_LEN})",
    )
    group.add_argument(
        "--autotune-results",
        type=Path,
        metavar="FILE",
        help="XLA's autotuning results for this kind of GPU",
    )
    group.add_argument(
        "--record-autotuning",
        type=Path,
        metavar="FILE",
        help="write XLA's autotuning results for this GPU",
    )


def run(args: argparse.Namespace) -> int:
    """Print what each program needs. Return 1 if one does not compile or fit."""
    # XLA logs many warnings about absent devices; errors are raised.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    options = engine_options(model_of(args), given(args, ENGINE_FLAGS))
    from jaxserve.planning.planner import plan_engine
    from jaxserve.planning.precompile import precompile

    plan = plan_engine(options, target=args.target)
    context_len = min(args.context_len or _CONTEXT_LEN, plan.scheduler.max_model_len)
    for line in plan.lines():
        print(line)
    print(f"attention: {plan.context.attention.choice}; matmul: {plan.linear.choice}")
    print(
        f"GFLOP and GB per device are counted from shapes: full steps, sequences of {context_len}"
        " tokens,\nweights and KV cache read once, no communication; the roofline is a lower bound"
    )
    print(_COLUMNS, flush=True)
    reports = []
    for report in precompile(
        plan,
        context_len=context_len,
        only=args.only,
        out=args.out,
        autotune_results=args.autotune_results,
        record_autotuning=args.record_autotuning,
    ):
        print(_row(plan, report), flush=True)
        reports.append(report)
    for line in _summary(plan, reports):
        print(line)
    if args.json is not None:
        record = _record(plan, reports, context_len=context_len)
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0 if all(report.fits for report in reports) else 1


def _row(plan: "EnginePlan", report: "ProgramReport") -> str:
    from jaxserve.execution.memory import show_bytes

    start = f"{report.name:<20}{report.compile_s:>7.1f} s"
    memory = report.memory
    if memory is None:
        return f"{start}  failed: {report.error}"
    sizes = (memory.arguments, memory.aliased, memory.temporaries)
    cost, target = report.cost, plan.context.attention.target
    seconds = cost.seconds(target)
    roofline = "-" if seconds is None else f"{seconds * 1e3:.3f} ms"
    return (
        start
        + "".join(f"{show_bytes(size):>12}" for size in sizes)
        + f"{'yes' if report.fits else 'NO':>6}"
        + f"{cost.flops / 1e9:>11.1f}{cost.num_bytes / 1e9:>9.2f}"
        + f"{roofline:>11}  {cost.bound(target) or '':<9}{report.tuning or '-'}"
    )


def _summary(plan: "EnginePlan", reports: "list[ProgramReport]") -> list[str]:
    from jaxserve.execution.memory import show_bytes

    memories = [(report.name, report.memory) for report in reports if report.memory is not None]
    elapsed_s = sum(report.compile_s for report in reports)
    lines = [f"{len(memories)} of {len(reports)} programs compiled in {elapsed_s:.0f} s"]
    limit = plan.memory.limit
    unfit = [report.name for report in reports if not report.fits]
    if memories:
        name, largest = max(memories, key=lambda memory: memory[1].total)
        lines.append(
            f"at most {show_bytes(largest.total)} of {show_bytes(limit)} in use, by {name}"
        )
    lines.append("all fit" if not unfit else f"programs that do not fit: {', '.join(unfit)}")
    kept = plan.memory.cache + plan.memory.state
    copied = [
        name
        for name, memory in memories
        if name not in {"allocate", "assign"}
        # Deferred sampling does not use pages.
        and memory.aliased < (plan.memory.state if name.startswith("deferred-") else kept)
    ]
    lines.append(
        "every step updates KV pages and slot state in place"
        if not copied
        else f"programs that copy KV pages or slot state: {', '.join(copied)}"
    )
    untuned = [report.name for report in reports if report.tuning not in {None, "measured"}]
    if untuned:
        lines.append(
            f"{len(untuned)} programs were compiled without measurements of this GPU: cuBLAS"
            " selects their matmul kernels by heuristics (see docs/compile.md)"
        )
    sizes = [report.size for report in reports if report.size is not None]
    if sizes:
        lines.append(f"{len(sizes)} programs written, {show_bytes(sum(sizes))}")
    return lines


def _record(
    plan: "EnginePlan", reports: "list[ProgramReport]", *, context_len: int
) -> dict[str, object]:
    """Return the report as a JSON object."""
    target = plan.context.attention.target
    return {
        "model": plan.name,
        "target": dataclasses.asdict(target),
        "is_absent": plan.is_absent,
        "key": dict(plan.key),
        "plan": dataclasses.asdict(plan.memory),
        "attention": str(plan.context.attention.choice),
        "linear": str(plan.linear.choice),
        "context_len": context_len,
        "programs": [
            {
                **dataclasses.asdict(report),
                "roofline_s": report.cost.seconds(target),
                "bound": report.cost.bound(target),
            }
            for report in reports
        ],
    }
