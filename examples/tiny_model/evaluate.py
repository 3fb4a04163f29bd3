"""Score a folder of the tiny model on held-out questions: `python -m examples.tiny_model.evaluate`.

A score is the share of answers that are right: the very sentence for what has one answer, valid
JSON of the shape and the values asked for, a whole story about its hero, the right call of the
right tool. `new tools` are kinds of tool that no training text offers.
"""

import argparse
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from examples.tiny_model.corpus import HELD_OUT_SEED, held_out_cases
from examples.tiny_model.exchange import Conversation, Exchange
from examples.tiny_model.facts import CAPITALS
from examples.tiny_model.tokenizer import render
from examples.tiny_model.train import HISTORY
from jaxserve import LLM, SamplingParams

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).resolve().parents[2] / "jaxserve/assets/jaxserve-tiny"
CARD = Path(__file__).with_name("model_card.md")
MAX_TOKENS = 256

# Prompts in, answers out, in the same order.
type Generate = Callable[[Sequence[str]], list[str]]


def prompts(cases: Sequence[Exchange]) -> list[str]:
    """Write each case by the chat template, up to where the assistant speaks."""
    return [
        render(Conversation(case.prompt, list(case.tools)), add_generation_prompt=True)
        for case in cases
    ]


def scores(cases: Sequence[Exchange], answers: Sequence[str]) -> dict[str, float]:
    """Return the share of right answers, skill by skill and over all."""
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for case, answer in zip(cases, answers, strict=True):
        asked[case.skill] += 1
        right[case.skill] += case.accepts(answer)
    shares = {skill: round(right[skill] / count, 4) for skill, count in asked.items()}
    return shares | {"all": round(right.total() / asked.total(), 4)}


def evaluate(generate: Generate, *, per_skill: int = 200) -> tuple[dict[str, float], list[str]]:
    """Ask every held-out case; returns the scores and, to learn from, the wrong answers."""
    cases = list(held_out_cases(per_skill=per_skill))
    answers = generate(prompts(cases))
    wrong = [
        f"{case.skill}: {case.prompt[-1]['content']} -> {answer}"
        for case, answer in zip(cases, answers, strict=True)
        if not case.accepts(answer)
    ]
    return scores(cases, answers), wrong


def model_card(report: dict[str, Any], folder: Path) -> str:
    """Write what the folder holds, how it was made and how it scored."""
    weights = folder / "model.safetensors"
    with safe_open(weights, "numpy") as tensors:
        sizes = [prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()]  # noqa: SIM118
    return CARD.read_text().format(
        num_parameters=f"{sum(sizes):,}",
        megabytes=f"{weights.stat().st_size / 1e6:.1f}",
        num_countries=len(CAPITALS.capitals),
        stages="\n".join(
            f"- {stage['num_steps']:,} steps of at most {stage['tokens_per_step']:,} tokens"
            f" (seed {stage['seed']})"
            for stage in report["stages"]
        ),
        tokenizer_seed=report["stages"][0]["tokenizer_seed"],
        held_out_seed=report["held_out_seed"],
        cases_per_skill=report["cases_per_skill"],
        scores=_table(report["scores"]),
    )


def _table(scores_by_column: dict[str, dict[str, float]]) -> str:
    lines = ["| questions | " + " | ".join(scores_by_column) + " |"]
    lines.append("|---|" + "---|" * len(scores_by_column))
    for skill in next(iter(scores_by_column.values())):
        figures = " | ".join(f"{100 * column[skill]:.1f} %" for column in scores_by_column.values())
        lines.append(f"| {skill} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    """Score a folder greedily and at temperature 0.7; write the scores and the card into it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--per-skill", type=int, default=200)
    parser.add_argument("--show-wrong", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    llm = LLM(str(args.folder))
    columns: dict[str, dict[str, float]] = {}
    for name, temperature in (("greedy", 0.0), ("temperature 0.7", 0.7)):

        def generate(texts: Sequence[str], temperature: float = temperature) -> list[str]:
            sampling = [
                SamplingParams(temperature=temperature, max_tokens=MAX_TOKENS, seed=seed)
                for seed in range(len(texts))
            ]
            return [result.outputs[0].text for result in llm.generate(texts, sampling)]

        columns[name], wrong = evaluate(generate, per_skill=args.per_skill)
        if args.show_wrong:
            logger.info("%s", "\n".join(wrong))
    report = {
        **json.loads((args.folder / HISTORY).read_text()),
        "held_out_seed": HELD_OUT_SEED,
        "cases_per_skill": args.per_skill,
        "scores": columns,
    }
    (args.folder / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n")
    (args.folder / "README.md").write_text(model_card(report, args.folder))
    logger.info("%s", _table(columns))


if __name__ == "__main__":
    main()
