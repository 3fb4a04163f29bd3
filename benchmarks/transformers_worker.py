"""Worker of throughput.py and offline.py for transformers.

Started with a model folder and a workload, it answers each line of standard input with a line of
JSON: the seconds and the generated tokens. A line is the batch size of `generate`, or "continuous"
for transformers' continuous batching, optionally followed by the number of requests. It does not
import jaxserve and needs only Python 3.10.

The conditions favour transformers: requests are sorted by answer length, so that a static batch
waits little for its longest member, and tokens beyond a request's length are not counted against
it.
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
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

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
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=length,
            min_new_tokens=length,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=PAD,
        )
        for row, job in enumerate(group):
            tokens[job["id"]] = made[row, width : width + job["out"]].tolist()
    return tokens


def batch_continuously(model: Any, jobs: list[Job]) -> dict[int, list[int]]:
    """Return the tokens of each job by its id, by `generate_batch`'s machinery."""
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max(job["out"] for job in jobs),
        do_sample=False,
        eos_token_id=None,
        pad_token_id=PAD,
    )
    names: dict[str, int] = {}
    tokens: dict[int, list[int]] = {}
    with model.continuous_batching_context_manager(generation_config=config) as manager:
        for job in jobs:
            names[manager.add_request(job["prompt"], max_new_tokens=job["out"])] = job["id"]
        while len(tokens) < len(jobs):
            result = manager.get_result(timeout=5)
            if result is None:
                assert manager.is_running(), "transformers' continuous batching has stopped"
            elif result.is_finished():
                tokens[names[result.request_id]] = list(result.generated_tokens)
    return tokens


def load(args: argparse.Namespace) -> Any:
    """Return the model, its weights read or drawn at random on the device."""
    dtype = getattr(torch, args.dtype)
    if args.random_weights:
        config = AutoConfig.from_pretrained(args.model, local_files_only=True)
        with torch.device(args.device):
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, dtype=dtype, attn_implementation="sdpa"
            )
        return model.eval()
    return AutoModelForCausalLM.from_pretrained(
        args.model, dtype=dtype, attn_implementation="sdpa", local_files_only=True
    ).to(args.device)


def main() -> None:
    """Load the model, say what this is, and answer until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("workload", type=Path)
    parser.add_argument("--num-prompts", type=int)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--random-weights", action="store_true")
    args = parser.parse_args()
    workload = json.loads(args.workload.read_text("utf-8"))
    jobs = workload["w1"][: args.num_prompts]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = load(args)
    # Not inference mode, in which continuous batching's own thread may not write to tensors.
    with torch.no_grad():
        generate(model, [workload["warm"]], batch=1)
        ready = {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": torch.get_num_threads(),
        }
        print(json.dumps(ready), flush=True)
        for line in sys.stdin:
            how, *count = line.split()
            wanted = jobs[: int(count[0])] if count else jobs
            if how == "continuous":
                batch_continuously(model, [workload["warm"]])
            start_s = time.perf_counter()
            if how == "continuous":
                tokens = batch_continuously(model, wanted)
            else:
                tokens = generate(model, wanted, batch=int(how))
            elapsed_s = time.perf_counter() - start_s
            answer = {"elapsed_s": elapsed_s, "tokens": [tokens[job["id"]] for job in wanted]}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
