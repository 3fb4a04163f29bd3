"""The other side of throughput.py: transformers' `generate`, in an interpreter that has torch.

Started with a model folder and a workload, it answers each line on standard input, a number of
sequences at a time, with a line of JSON: the seconds that it took and the tokens it made. Nothing
of jaxserve is imported here, and Python 3.10 is enough.

transformers gets what suits it: requests are sorted by the length of their answer, so that a
static batch waits little for its longest member, and tokens beyond a request's own are not counted
against it.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found]
import transformers
from transformers import AutoModelForCausalLM

PAD = 0  # masked out: any token will do

Job = dict[str, Any]


def generate(model: Any, jobs: list[Job], *, batch: int) -> dict[int, list[int]]:
    """Return the tokens of each job by its id; greedy, to exact lengths, in static batches."""
    tokens: dict[int, list[int]] = {}
    by_length = sorted(jobs, key=lambda job: job["out"])
    for first in range(0, len(jobs), batch):
        group = by_length[first : first + batch]
        width = max(len(job["prompt"]) for job in group)
        length = max(job["out"] for job in group)
        ids = torch.full((len(group), width), PAD)
        mask = torch.zeros((len(group), width), dtype=torch.long)
        for row, job in enumerate(group):
            start = width - len(job["prompt"])
            ids[row, start:] = torch.tensor(job["prompt"])
            mask[row, start:] = 1
        made = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=length,
            min_new_tokens=length,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=PAD,
        )
        for row, job in enumerate(group):
            tokens[job["id"]] = made[row, width : width + job["out"]].tolist()
    return tokens


def main() -> None:
    """Load the model, say what this is, and answer until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("workload", type=Path)
    parser.add_argument("--num-prompts", type=int)
    args = parser.parse_args()
    workload = json.loads(args.workload.read_text("utf-8"))
    jobs = workload["w1"][: args.num_prompts]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    )
    with torch.inference_mode():
        generate(model, [workload["warm"]], batch=1)
        ready = {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": torch.get_num_threads(),
        }
        print(json.dumps(ready), flush=True)
        for line in sys.stdin:
            start_s = time.perf_counter()
            tokens = generate(model, jobs, batch=int(line))
            elapsed_s = time.perf_counter() - start_s
            answer = {"elapsed_s": elapsed_s, "tokens": [tokens[job["id"]] for job in jobs]}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
