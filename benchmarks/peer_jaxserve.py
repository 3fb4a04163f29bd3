"""Run jaxserve on the workload of peers.py, like the runners of other engines.

    python benchmarks/peer_jaxserve.py MODES PRECISION MODEL FLAGS...

MODES: w1 and w2, separated by commas. FLAGS: engine flags. Reads PEERS_HOME and PEERS_DIR, whose
common.py has the workload, the monitor of other processes, and the result format.
"""

import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from jaxserve import __version__
from jaxserve.bench.throughput import run_jobs
from jaxserve.bench.workload import Job
from jaxserve.commands.arguments import Parser, add_engine_arguments, model_of
from jaxserve.config.flags import ENGINE_FLAGS, given
from jaxserve.offline.llm import LLM


def job(request: dict[str, Any]) -> Job:
    """Return a request of the workload file."""
    return Job(tuple(request["prompt"]), request["out"])


def stream(llm: LLM, request: dict[str, Any]) -> tuple[float, float]:
    """Return seconds to the first token, and seconds of each further one."""
    times_s: list[float] = []
    num_tokens = 0
    start_s = time.perf_counter()
    for event in llm.run([job(request).request("0")]):
        times_s.append(time.perf_counter())
        num_tokens += len(event.token_ids)
    assert num_tokens == request["out"], f"{num_tokens} tokens of {request['out']}"
    return times_s[0] - start_s, (times_s[-1] - times_s[0]) / (num_tokens - 1)


def main() -> None:
    """Load the model, warm up, and run each workload once."""
    modes, precision = sys.argv[1].split(","), sys.argv[2]
    parser = Parser()
    add_engine_arguments(parser)
    args = parser.parse_args(sys.argv[3:])
    model = str(model_of(args))
    sys.path.insert(0, os.environ["PEERS_DIR"])
    common = importlib.import_module("common")
    workload = common.load()
    llm = LLM(model, **given(args, ENGINE_FLAGS))
    stream(llm, workload["warm"])
    about = (f"jaxserve-{__version__}", Path(model).name, precision)
    if "w2" in modes:
        common.wait_quiet()
        with common.Monitor() as monitor:
            ttft_s, tpot_s = stream(llm, workload["w2"])
        common.emit_w2(*about, ttft_s, tpot_s, monitor)
    if "w1" in modes:
        jobs = [job(request) for request in workload["w1"]]
        common.wait_quiet()
        with common.Monitor() as monitor:
            outputs = run_jobs(llm, jobs, batch=len(jobs))
        common.emit_w1(*about, monitor, workload["w1"], ntok=sum(map(len, outputs)))


if __name__ == "__main__":
    main()
