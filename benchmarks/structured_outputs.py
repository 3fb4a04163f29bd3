"""What grammars cost a step: sequences that all follow a JSON schema, beside as many that are free.

    python benchmarks/structured_outputs.py --tokenizer ../shared/data/tokenizers/qwen3

A small model with random weights and the vocabulary of Qwen3 decodes 64 sequences, in turns with
and without a schema, on one engine. The time of a step is that between the ends of two; medians of
all steps at full width, of which the least of several rounds counts. The model is small, so that a
step takes little longer than its logits do: with a real one the share can only be smaller.
"""

import argparse
import json
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxserve import SamplingParams, StructuredOutputsParams
from jaxserve.bench.machine import describe_machine
from jaxserve.build import build_with_tokenizer
from jaxserve.engine import TextEngine
from jaxserve.flags import engine_options
from jaxserve.planning import plan_engine
from jaxserve.request import Request

SCHEMA = {
    "type": "array",
    "minItems": 10_000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "size": {"enum": ["small", "medium", "large"]},
            "weight": {"type": "number"},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 4},
        },
        "required": ["name", "size", "weight", "tags"],
        "additionalProperties": False,
    },
}
WARM_UP_STEPS = 20


def config(vocab_size: int, *, hidden_size: int, layers: int) -> dict[str, Any]:
    """Return the config.json of a small Qwen3."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": hidden_size // 8,
        "vocab_size": vocab_size,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }


def measure(
    engine: TextEngine, *, num_sequences: int, num_steps: int, has_schema: bool
) -> list[float]:
    """Return the times of steps in which all sequences decode, in seconds."""
    structured = StructuredOutputsParams(json=SCHEMA, disable_any_whitespace=True)
    params = [
        SamplingParams(
            temperature=1.0,
            seed=seed,
            max_tokens=8 * num_steps,
            ignore_eos=True,
            structured_outputs=structured if has_schema else None,
        )
        for seed in range(num_sequences)
    ]
    name = "schema" if has_schema else "free"
    requests = [
        Request(id=f"{name} {index}", prompt_ids=tuple(range(10, 26)), params=each)
        for index, each in enumerate(params)
    ]
    times: list[float] = []
    for request in requests:
        engine.add(request)
    last_s = time.perf_counter()
    while len(times) < num_steps + WARM_UP_STEPS:
        events = engine.step()
        now_s = time.perf_counter()
        if len({event.request_id for event in events}) >= 0.9 * num_sequences:
            times.append(now_s - last_s)
            last_s = now_s
    for request in requests:
        engine.abort(request.id)
    while engine.has_work:
        engine.step()
    return times[WARM_UP_STEPS:]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of tokenizer.json")
    parser.add_argument("--vocab-size", type=int, default=151_936)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"hidden_size": arguments.hidden_size, "layers": arguments.layers}
        text = json.dumps(config(arguments.vocab_size, **sizes))
        (Path(folder) / "config.json").write_text(text, "utf-8")
        options = {
            "load_format": "dummy",
            "tokenizer": str(arguments.tokenizer),
            "max_num_seqs": arguments.sequences,
            "max_num_batched_tokens": 2 * arguments.sequences,
            "max_model_len": 1024,
            "warm_up": "full",
        }
        loaded, tokenizer = build_with_tokenizer(plan_engine(engine_options(folder, options)))
        engine = TextEngine(loaded.engine, tokenizer.backend)
        rounds: dict[str, list[list[float]]] = {"free": [], "schema": []}
        for _ in range(arguments.rounds):
            for name, found in rounds.items():
                found.append(
                    measure(
                        engine,
                        num_sequences=arguments.sequences,
                        num_steps=arguments.steps,
                        has_schema=name == "schema",
                    )
                )
    free, schema = (min(map(statistics.median, rounds[name])) for name in ("free", "schema"))
    result = {
        "sequences": arguments.sequences,
        "vocab_size": arguments.vocab_size,
        "free_ms": round(1e3 * free, 3),
        "schema_ms": round(1e3 * schema, 3),
        "share": round(schema / free - 1, 4),
        "rounds_ms": {
            name: [round(1e3 * statistics.median(times), 3) for times in found]
            for name, found in rounds.items()
        },
        "machine": describe_machine(),
    }
    print(json.dumps({k: v for k, v in result.items() if k != "machine"}, indent=1))
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{datetime.now(UTC):%Y-%m-%d}-structured-outputs.json"
    path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    plot(rounds, path.with_suffix(".svg"))


def plot(rounds: dict[str, list[list[float]]], path: Path) -> None:
    """Draw the distribution of step times with a schema and without."""
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(6, 3.5))
    for name, found in rounds.items():
        times = sorted(1e3 * seconds for each in found for seconds in each)
        axes.plot(times, [(i + 1) / len(times) for i in range(len(times))], label=name)
    axes.set_xlabel("time of a step, ms")
    axes.set_ylabel("share of steps")
    axes.set_ylim(0, 1)
    axes.legend(title="64 sequences")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
