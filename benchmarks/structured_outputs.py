"""Measure the cost of grammars: none, half or all sequences follow a JSON schema.

    python benchmarks/structured_outputs.py --tokenizer ../shared/data/tokenizers/qwen3

A model with random weights and the vocabulary of Qwen3 decodes 64 sequences with the same prompts
on one engine, alternating every few seconds between no, half and all sequences with a schema. The
time of a step is measured between the ends of consecutive steps. The result is the median ratio of
consecutive runs, each represented by its median step. Tokens per second are reported too, because
forced tokens are not sampled. The model is small, so that a step consists mostly of its logits;
with a larger model the share would be smaller.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxserve import SamplingParams, StructuredOutputsParams
from jaxserve.api.request import Request
from jaxserve.bench.machine import describe_machine
from jaxserve.build import build_with_tokenizer
from jaxserve.config.flags import engine_options
from jaxserve.frontend.text_engine import TextEngine
from jaxserve.planning.planner import plan_engine

SCHEMA = {
    "type": "array",
    "minItems": 10_000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "size": {"enum": ["small", "medium", "large"]},
            "weight": {"type": "number"},
            "tags": {
                "type": "array",
                "items": {"type": "string", "maxLength": 40},
                "maxItems": 4,
            },
        },
        "required": ["name", "size", "weight", "tags"],
        "additionalProperties": False,
    },
}
WARM_UP_STEPS = 4
KINDS = {"none": 0.0, "half": 0.5, "all": 1.0}


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


@dataclass(frozen=True)
class Turn:
    """Steps of one kind. seconds: of each. num_tokens: that they brought together."""

    seconds: list[float]
    num_tokens: int

    @property
    def step_s(self) -> float:
        """The time of a step."""
        return statistics.median(self.seconds)

    @property
    def tokens_per_s(self) -> float:
        """Throughput of all sequences together."""
        return self.num_tokens / sum(self.seconds)


def measure(engine: TextEngine, *, num_sequences: int, num_steps: int, num_bound: int) -> Turn:
    """Measure steps in which all sequences decode, `num_bound` of them by the schema."""
    structured = StructuredOutputsParams(json=SCHEMA, disable_any_whitespace=True)
    requests = [
        Request(
            id=f"{num_bound} of {num_sequences}, {index}",
            prompt_ids=tuple(range(10, 26)),
            params=SamplingParams(
                temperature=1.0,
                seed=index,
                max_tokens=900,
                ignore_eos=True,
                structured_outputs=structured if index < num_bound else None,
            ),
        )
        for index in range(num_sequences)
    ]
    for request in requests:
        engine.add(request)
    decoding: set[str] = set()
    while len(decoding) < num_sequences:
        decoding |= {event.request_id for event in engine.step() if event.token_ids}
    for _ in range(WARM_UP_STEPS):
        engine.step()
    seconds: list[float] = []
    num_tokens = 0
    last_s = time.perf_counter()
    while len(seconds) < num_steps:
        num_tokens += sum(len(event.token_ids) for event in engine.step())
        now_s = time.perf_counter()
        seconds.append(now_s - last_s)
        last_s = now_s
    for request in requests:
        engine.abort(request.id)
    while engine.has_work:
        engine.step()
    return Turn(seconds, num_tokens)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of tokenizer.json")
    parser.add_argument("--vocab-size", type=int, default=151_936)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
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
        turns: dict[str, list[Turn]] = {kind: [] for kind in KINDS}
        for number in range(-1, arguments.rounds):
            for kind, share in KINDS.items():
                turn = measure(
                    engine,
                    num_sequences=arguments.sequences,
                    num_steps=arguments.steps,
                    num_bound=round(share * arguments.sequences),
                )
                if number >= 0:  # the first round makes the vocabulary's tables
                    turns[kind].append(turn)
    result = {
        "sequences": arguments.sequences,
        "vocab_size": arguments.vocab_size,
        "hidden_size": arguments.hidden_size,
        "layers": arguments.layers,
        "step_ms": {
            kind: [round(1e3 * turn.step_s, 2) for turn in found] for kind, found in turns.items()
        },
        "share": {
            kind: round(
                statistics.median(
                    turn.step_s / free.step_s - 1
                    for turn, free in zip(found, turns["none"], strict=True)
                ),
                4,
            )
            for kind, found in turns.items()
        },
        "tokens_per_s": {
            kind: round(statistics.median(turn.tokens_per_s for turn in found), 1)
            for kind, found in turns.items()
        },
        "machine": describe_machine(),
    }
    print(json.dumps({k: v for k, v in result.items() if k != "machine"}, indent=1))
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{datetime.now(UTC):%Y-%m-%d}-structured-outputs.json"
    path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    plot(turns, path.with_suffix(".svg"))


def plot(turns: dict[str, list[Turn]], path: Path) -> None:
    """Draw the distribution of step times with a schema and without."""
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(6, 3.5))
    for kind, found in turns.items():
        times = sorted(1e3 * seconds for turn in found for seconds in turn.seconds)
        axes.plot(times, [(i + 1) / len(times) for i in range(len(times))], label=kind)
    axes.set_xlabel("time of a step, ms")
    axes.set_ylabel("share of steps")
    axes.set_ylim(0, 1)
    axes.legend(title="with a schema")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
