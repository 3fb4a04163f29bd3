"""Print the greedy tokens of an engine for the first requests of a workload, for peers.py.

    PYTHON benchmarks/peer_tokens.py ENGINE MODEL WORKLOAD NUM_REQUESTS NUM_TOKENS PRECISION

Runs in the engine's interpreter without other code of this project. MODEL is a folder, or for
llama.cpp the URL of its server. Requests run one at a time. The result is a line
`RESULT [[ids], ...]`.
"""

# ruff: noqa: PLC0415  (each environment has one of these engines)

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

# No `type` statement: engines have interpreters older than ours.
Generate = Callable[[list[int], int], list[int]]


def transformers(model: str, _precision: str) -> Generate:
    """Transformers in float32: what the others are compared with."""
    import torch  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM

    network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    def generate(prompt: list[int], count: int) -> list[int]:
        ids = torch.tensor([prompt])
        options: Any = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        options |= {"eos_token_id": None, "pad_token_id": 2}
        found = network.generate(ids, attention_mask=torch.ones_like(ids), **options)
        tokens: list[int] = found[0, len(prompt) :].tolist()
        return tokens

    return generate


def openvino(model: str, precision: str) -> Generate:
    """OpenVINO GenAI with the runner's settings."""
    import numpy as np
    import openvino as ov  # type: ignore[import-not-found]
    import openvino_genai as genai  # type: ignore[import-not-found]

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 1
    scheduler.enable_prefix_caching = False
    properties = {"INFERENCE_PRECISION_HINT": "f32"}
    if precision == "f32":
        properties["KV_CACHE_PRECISION"] = "f32"
    pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)

    def generate(prompt: list[int], count: int) -> list[int]:
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = count
        config.ignore_eos = True
        ids = ov.Tensor(np.array([prompt], dtype=np.int64))
        handle = pipeline.add_request(0, ids, config)
        while pipeline.has_non_finished_requests():
            pipeline.step()
        return list(handle.read_all()[0].generated_ids)

    return generate


def vllm(model: str, _precision: str) -> Generate:
    """VLLM's CPU build with the runner's settings."""
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    llm = LLM(model, max_model_len=1024, enable_prefix_caching=False, dtype="float32")

    def generate(prompt: list[int], count: int) -> list[int]:
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        found = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
        return list(found[0].outputs[0].token_ids)

    return generate


def ctranslate2(model: str, precision: str) -> Generate:
    """CTranslate2, which speaks in the words of its vocabulary."""
    import ctranslate2 as ct2  # type: ignore[import-not-found]

    kind = {"f32": "float32", "int8": "int8"}[precision]
    generator = ct2.Generator(model, device="cpu", compute_type=kind)
    words: list[str] = json.loads(Path(model, "vocabulary.json").read_text("utf-8"))

    def generate(prompt: list[int], count: int) -> list[int]:
        found = generator.generate_batch(
            [[words[token_id] for token_id in prompt]],
            max_length=count,
            min_length=count,
            include_prompt_in_result=False,
            sampling_topk=1,
            end_token=[],
        )
        return list(found[0].sequences_ids[0])

    return generate


def llamacpp(url: str, _precision: str) -> Generate:
    """llama.cpp's server, by its own endpoint, which tells tokens."""

    def generate(prompt: list[int], count: int) -> list[int]:
        fields = {"prompt": prompt, "n_predict": count, "temperature": 0, "ignore_eos": True}
        fields |= {"return_tokens": True, "cache_prompt": False, "samplers": ["temperature"]}
        body = json.dumps(fields).encode()
        request = Request(f"{url}/completion", body, {"Content-Type": "application/json"})
        with urlopen(request, timeout=300) as answer:
            return list(json.load(answer)["tokens"])

    return generate


def jaxserve(model: str, precision: str) -> Generate:
    """This engine, from the processes' point of view one like the others."""
    from jaxserve import LLM, SamplingParams

    options: Any = {} if precision == "f32" else {"quantization": precision}
    llm = LLM(model, dtype="float32", enable_prefix_caching=False, max_num_seqs=1, **options)

    def generate(prompt: list[int], count: int) -> list[int]:
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        found = llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)
        return list(found[0].outputs[0].token_ids)

    return generate


ENGINES: dict[str, Callable[[str, str], Generate]] = {
    "transformers": transformers,
    "openvino": openvino,
    "vllm": vllm,
    "ctranslate2": ctranslate2,
    "llama.cpp": llamacpp,
    "jaxserve": jaxserve,
}


def main() -> None:
    """Generate and print."""
    name, model, workload, num_requests, num_tokens, precision = sys.argv[1:7]
    requests = json.loads(Path(workload).read_text("utf-8"))["w1"][: int(num_requests)]
    generate = ENGINES[name](model, precision)
    tokens = [generate(request["prompt"], int(num_tokens)) for request in requests]
    print("RESULT " + json.dumps(tokens), flush=True)


if __name__ == "__main__":
    main()
