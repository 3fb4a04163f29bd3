"""Measure the time from the start of a process to its first token, in three ways.

    python benchmarks/cold_start.py MODEL --executables DIR -- --max-num-seqs 32

`cold` compiles everything; `cache` uses the compilation cache of the previous process;
`executables` loads the programs of `jaxserve compile --out DIR` with an empty cache, and is skipped
without --executables. Each is a new process of `jaxserve generate` with one token; flags after `--`
are passed to it (`--load-format dummy --tokenizer FOLDER` if only a model's shapes are available,
`--warm-up full` to wait for every program). The three alternate. `ready` is the time after the
imports, as reported by the process. `jaxserve bench startup` measures the start of a server.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from jaxserve.bench.machine import describe_machine

_READY = re.compile(r"ready ([0-9.]+) s after imports")


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the start of a process to its first token, and from its imports until ready."""

    first_token_s: float
    ready_s: float


def start(model: str, flags: list[str], *, cache: Path) -> Start:
    """Start a process, and wait for the token; raises RuntimeError when none comes."""
    command = [
        *(sys.executable, "-m", "jaxserve", "generate", model),
        *("--json", "--prompt", "Once upon a time", "--max-tokens", "1", *flags),
    ]
    begin_s = time.perf_counter()
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    ) as process:
        assert process.stdout is not None
        # The log is a few lines, which its pipe holds until they are read.
        line = process.stdout.readline()
        first_token_s = time.perf_counter() - begin_s
        log = process.communicate()[1]
    ready = _READY.search(log)
    if not line or ready is None:
        raise RuntimeError(f"{' '.join(command)} made no token:\n{log[-2000:]}")
    if "the programs in" in log:
        raise RuntimeError(f"the executables are of no use here:\n{log[-2000:]}")
    return Start(first_token_s, float(ready[1]))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s MODEL [--executables DIR] [--rounds N] [--json FILE] [-- FLAG ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--executables", metavar="DIR")
    parser.add_argument("--rounds", type=int, default=1, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    args, flags = parser.parse_args(arguments[:end]), arguments[end + 1 :]
    starts: dict[str, list[Start]] = {}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as filled, tempfile.TemporaryDirectory() as empty:
            ways: dict[str, tuple[str, list[str]]] = {"cold": (filled, []), "cache": (filled, [])}
            if args.executables is not None:
                ways["executables"] = (empty, ["--executables", args.executables])
            for name, (cache, more) in ways.items():
                found = start(args.model, [*flags, *more], cache=Path(cache))
                starts.setdefault(name, []).append(found)
                print(f"{name}: {found.first_token_s:.1f} s", file=sys.stderr, flush=True)
    machine = describe_machine()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"{args.model} {' '.join(flags)}, median of {args.rounds}")
    print(f"{'start':<14}{'first token':>13}{'ready':>13}{'of cold':>10}")
    cold_s = median(each.first_token_s for each in starts["cold"])
    for name, found_starts in starts.items():
        first_s = median(each.first_token_s for each in found_starts)
        ready_s = median(each.ready_s for each in found_starts)
        print(f"{name:<14}{first_s:>11.1f} s{ready_s:>11.1f} s{100 * first_s / cold_s:>8.0f} %")
    if args.json is not None:
        record = {
            "model": args.model,
            "flags": flags,
            "machine": machine,
            "starts": {name: [asdict(each) for each in found] for name, found in starts.items()},
        }
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
