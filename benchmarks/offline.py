"""Compare offline throughput with transformers on a device, with real shapes.

    python benchmarks/offline.py llama-3.1-8b --torch-python PYTHON --json offline.json

Weights are random, since speed does not depend on them, so no checkpoint is needed. The same
requests go to jaxserve, all at once; some of them to `generate`, one by one; and to transformers'
continuous batching. Each runs in its own process, one after the other, because each uses most of
the device's memory. MODEL is the name of a published shape or a folder with a config.json; the
interpreter needs torch and transformers.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from jaxserve.bench.machine import describe_machine
from jaxserve.loading.published import published

HERE = Path(__file__).parent
TINY = HERE.parent / "jaxserve" / "assets" / "jaxserve-tiny"
FIRST_TOKEN, LAST_TOKEN = 100, 1000  # in any vocabulary, and special in none


def write_workload(path: Path, args: argparse.Namespace) -> None:
    """Write the requests, as `jaxserve bench throughput --workload` reads them."""
    draw = random.Random(args.seed)

    def request(number: int, num_tokens: int, num_new: int) -> dict[str, Any]:
        prompt = [draw.randint(FIRST_TOKEN, LAST_TOKEN) for _ in range(num_tokens)]
        return {"id": number, "prompt": prompt, "out": num_new}

    requests = [request(i, args.input_len, args.output_len) for i in range(args.num_prompts)]
    text = json.dumps({"w1": requests, "warm": request(-1, 16, 8)})
    path.write_text(text, encoding="utf-8")


def run_jaxserve(workload: Path, args: argparse.Namespace) -> float:
    """Return output tokens per second."""
    result = workload.with_name("jaxserve.json")
    options = {
        "--workload": workload,
        "--dtype": args.dtype,
        "--tokenizer": TINY,
        "--load-format": "dummy",
        "--max-num-seqs": args.num_prompts,
        "--max-model-len": args.input_len + args.output_len,
        "--output-json": result,
    }
    flags = [str(part) for pair in options.items() for part in pair]
    command = [sys.executable, "-m", "jaxserve", "bench", "throughput", args.model, *flags]
    subprocess.run([*command, "--no-enable-prefix-caching"], check=True)
    record = json.loads(result.read_text("utf-8"))
    return float(record["results"][0]["output_tokens_per_second"])


def run_transformers(workload: Path, args: argparse.Namespace) -> tuple[dict[str, float], Any]:
    """Return output tokens per second of each way, and versions."""
    shape = published().get(args.model)
    folder = Path(args.model)
    if shape is not None:
        folder = workload.parent
        (folder / "config.json").write_bytes(shape.read_bytes())
    # Isolated: the worker's own folder has a kernels.py, and transformers looks for a package.
    command = [args.torch_python, "-I", str(HERE / "transformers_worker.py")]
    how = ["--random-weights", "--dtype", args.dtype, "--device", args.device]
    ways = {"generate": f"1 {args.num_alone}", "continuous batching": "continuous"}
    rates: dict[str, float] = {}
    with subprocess.Popen(
        [*command, str(folder), str(workload), *how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        # Where there is no line, it has ended, and said why on standard error.
        versions = json.loads(process.stdout.readline() or "{}")
        for name, line in ways.items() if versions else ():
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            if not answer:
                break
            record = json.loads(answer)
            num_tokens = sum(map(len, record["tokens"]))
            rates[name] = num_tokens / record["elapsed_s"]
        process.stdin.close()
    return rates, versions


def main() -> None:
    """Measure and print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--torch-python", required=True, metavar="FILE")
    parser.add_argument("--device", default="cuda", help="torch's name of it (default: cuda)")
    parser.add_argument("--dtype", default="bfloat16", metavar="NAME")
    parser.add_argument("--num-prompts", type=int, default=256, metavar="N")
    parser.add_argument("--num-alone", type=int, default=4, metavar="N", help="one by one (4)")
    parser.add_argument("--input-len", type=int, default=128, metavar="N")
    parser.add_argument("--output-len", type=int, default=128, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workload = Path(folder) / "workload.json"
        write_workload(workload, args)
        ours = run_jaxserve(workload, args)
        theirs, versions = run_transformers(workload, args)
    print(f"jaxserve: {ours:.1f} output tokens per second")
    for name, rate in theirs.items():
        print(f"transformers {name}: {rate:.1f}; jaxserve is {ours / rate:.2f} times as fast")
    if args.json is not None:
        arguments = {name: str(value) for name, value in vars(args).items()}
        about = {"arguments": arguments, "machine": describe_machine(), **versions}
        record = {**about, "jaxserve": ours, "transformers": theirs}
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if len(theirs) < 2:
        sys.exit("transformers did not finish; its error is above")


if __name__ == "__main__":
    main()
