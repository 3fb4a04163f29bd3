"""Worker of kernels.py for PyTorch: SDPA and flex attention.

Reads jobs from standard input, one line of JSON each, and answers with lines of JSON: the seconds
of one call, or an error. It does not import jaxserve and needs only Python 3.10. Calls read
contiguous keys and values and write none. They are recorded in a CUDA graph, so that no time is
lost between them, and timed with device events. Without a GPU this is a rehearsal.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch  # type: ignore[import-not-found]
from torch.nn.attention import flex_attention as flex  # type: ignore[import-not-found]
from torch.nn.functional import (  # type: ignore[import-not-found]
    scaled_dot_product_attention,
)

Job = dict[str, Any]
Attend = Callable[[Any, Any, Any], Any]

ROUNDS = 20


def sdpa(job: Job, device: str) -> Attend:
    """Whatever PyTorch thinks best of what it has."""
    del device
    if job["window"] is not None:
        raise ValueError("left out: windows")
    is_causal = job["rows"] > 1

    def attend(q: Any, k: Any, v: Any) -> Any:
        return scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=True)

    return attend


def flex_attention(job: Job, device: str) -> Attend:
    """The compiled kernel of PyTorch that takes any mask."""
    rows, total, window = job["rows"], job["total"], job["window"]

    def is_visible(batch: Any, head: Any, query: Any, key: Any) -> Any:
        del batch, head
        position = query + (total - rows)
        if window is None:
            return key <= position
        return (key <= position) & (key > position - window)

    mask = flex.create_block_mask(is_visible, None, None, rows, total, device=device)
    compiled = torch.compile(flex.flex_attention)

    def attend(q: Any, k: Any, v: Any) -> Any:
        return compiled(q, k, v, block_mask=mask, enable_gqa=True)

    return attend


CONTENDERS = {"torch_sdpa": sdpa, "torch_flex": flex_attention}


def seconds_per_call(job: Job, attend: Attend, device: str) -> float:
    """Return the median over runs of a program, of all its calls."""
    kv_shape = (job["batch"], job["kv_heads"], job["total"], job["head_dim"])
    q_shape = (job["batch"], job["heads"], job["rows"], job["head_dim"])
    dtype = getattr(torch, job["dtype"])
    sets = [
        [torch.randn(shape, dtype=dtype, device=device) for shape in (q_shape, kv_shape, kv_shape)]
        for _ in range(job["sets"])
    ]

    def program() -> None:
        for call in range(job["calls"]):
            attend(*sets[call % len(sets)])

    run = _host_seconds if device == "cpu" else _graph_seconds
    return statistics.median(run(program)) / int(job["calls"])


def _graph_seconds(program: Callable[[], None]) -> list[float]:
    # Compiles, and fills the pools that a recording must not grow.
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        program()
        program()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        program()
    seconds = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return seconds[2:]


def _host_seconds(program: Callable[[], None]) -> list[float]:
    program()
    start_s = time.perf_counter()
    program()
    return [time.perf_counter() - start_s]


def main() -> None:
    """Say what this is, and answer until standard input ends."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(json.dumps({"torch": torch.__version__, "torch_device": device}), flush=True)
    torch.manual_seed(0)
    with torch.inference_mode():
        for line in sys.stdin:
            job = json.loads(line)
            for contender, make in CONTENDERS.items():
                answer: Job = {"case": job["case"], "contender": contender}
                try:
                    answer["seconds"] = seconds_per_call(job, make(job, device), device)
                # torch refuses in many classes; the answer has the class and the words.
                except Exception as error:  # noqa: BLE001
                    answer["note"] = f"{type(error).__name__}: {error}".splitlines()[0]
                print(json.dumps(answer), flush=True)
                if device == "cuda":
                    torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
