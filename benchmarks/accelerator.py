r"""Run all measurements on an accelerator within ten minutes.

    python benchmarks/accelerator.py --out results/h200 --executables DIR --torch-python PYTHON
    PALLAS_KERNELS_SIMULATE=h200 python benchmarks/accelerator.py --rehearse --out /tmp/rehearsal \
        --torch-python PYTHON

Stages, each a separate process with its own time limit, most important first:

- kernels: correctness and speed (kernels.py)
- step: real shapes with random weights (step.py)
- offline: throughput compared with transformers, one by one and with continuous batching
  (offline.py)
- start: with and without precompiled programs (cold_start.py), from `jaxserve compile llama-3.1-8b
  --out DIR` with START_FLAGS
- autotuning: XLA's results, for compiling elsewhere

A stage that fails or times out does not affect the others. --out gets the output and JSON of each
stage; a summary is printed last. --rehearse runs a small version on any machine, in six minutes on
two cores, without autotuning, which needs a GPU. Without torch the stage offline fails, but its
JSON has jaxserve's throughput.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
TINY = HERE.parent / "jaxserve" / "assets" / "jaxserve-tiny"
MODEL = "llama-3.1-8b"
# Fewer programs than a server has, so that compiling them all fits into the time.
TUNED_FLAGS = ("--max-num-seqs", "64", "--max-num-batched-tokens", "128")
RANDOM_WEIGHTS = ("--load-format", "dummy", "--tokenizer", str(TINY))
START_FLAGS = (
    *("--max-num-seqs", "8", "--max-num-batched-tokens", "512", "--max-model-len", "8192"),
    *RANDOM_WEIGHTS,
)


@dataclass(frozen=True)
class Stage:
    """A command with the seconds it may take."""

    name: str
    command: tuple[str, ...]
    timeout_s: float


def stages(args: argparse.Namespace) -> list[Stage]:
    """Return what to run, with each stage's JSON in args.out."""

    def script(file: str, name: str, *arguments: str, timeout_s: float) -> Stage:
        result = ("--json", str(args.out / f"{name}.json"))
        command = (sys.executable, str(HERE / file), *result, *arguments)
        return Stage(name, command, timeout_s)

    carried = () if args.executables is None else ("--executables", args.executables)
    torch = ("--torch-python", args.torch_python)
    if args.rehearse:
        here = ("--device", "cpu", "--dtype", "float32")
        few = ("--num-prompts", "4", "--num-alone", "1", "--input-len", "16", "--output-len", "8")
        small = ("--batch", "1", "4", "--context", "64", "--steps", "8")
        flags = ("--max-num-seqs", "4", "--max-num-batched-tokens", "64", *RANDOM_WEIGHTS)
        return [
            script("kernels.py", "kernels", "--quick", *torch, timeout_s=900),
            script("step.py", "step", str(TINY), *small, timeout_s=300),
            script("offline.py", "offline", str(TINY), *few, *torch, *here, timeout_s=300),
            script("cold_start.py", "start", str(TINY), *carried, "--", *flags, timeout_s=300),
        ]
    real = ("--batch", "1", "64", "256", "--context", "1024")
    tuned = ("--record-autotuning", str(args.out / "autotuning.txt"), *TUNED_FLAGS)
    return [
        script("kernels.py", "kernels", *torch, timeout_s=170),
        script("step.py", "step", MODEL, *real, timeout_s=120),
        script("offline.py", "offline", MODEL, *torch, timeout_s=130),
        script("cold_start.py", "start", MODEL, *carried, "--", *START_FLAGS, timeout_s=110),
        Stage("autotuning", (sys.executable, "-m", "jaxserve", "compile", MODEL, *tuned), 60),
    ]


def run(stage: Stage, out: Path) -> str:
    """Run a stage, keep what it prints, and return how it ended."""
    begin_s = time.perf_counter()
    with (out / f"{stage.name}.log").open("w", encoding="utf-8") as log:
        log.write(" ".join(stage.command) + "\n")
        log.flush()
        try:
            status = subprocess.run(
                stage.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=stage.timeout_s,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = None
    ended = {None: "out of time", 0: "done"}.get(status, f"failed with status {status}")
    return f"{stage.name:<12}{time.perf_counter() - begin_s:>7.0f} s  {ended}"


def main() -> None:
    """Run every stage and print what each found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--executables", metavar="DIR")
    parser.add_argument("--torch-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    summary = []
    for stage in stages(args):
        summary.append(run(stage, args.out))
        print(summary[-1], file=sys.stderr, flush=True)
        print((args.out / f"{stage.name}.log").read_text("utf-8")[-6000:], flush=True)
    print("\n".join(summary))


if __name__ == "__main__":
    main()
