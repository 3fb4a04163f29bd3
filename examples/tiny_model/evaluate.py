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
from pathlib import Path

from examples.tiny_model.corpus import HELD_OUT_SEED, held_out_cases
from examples.tiny_model.exchange import Conversation, Exchange
from examples.tiny_model.tokenizer import render
from jaxserve import LLM, SamplingParams

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).resolve().parents[2] / "jaxserve/assets/jaxserve-tiny"
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
        for skill in (case.skill, "all"):
            asked[skill] += 1
            right[skill] += case.accepts(answer)
    return {skill: round(right[skill] / count, 4) for skill, count in asked.items()}


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


def main() -> None:
    """Print the scores, greedy and at temperature 0.7, and write them into the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--per-skill", type=int, default=200)
    parser.add_argument("--show-wrong", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    llm = LLM(str(args.folder))
    table: dict[str, dict[str, float]] = {}
    for temperature in (0.0, 0.7):
        sampling = SamplingParams(temperature=temperature, max_tokens=MAX_TOKENS, seed=0)

        def generate(texts: Sequence[str], sampling: SamplingParams = sampling) -> list[str]:
            return [result.outputs[0].text for result in llm.generate(texts, sampling)]

        result, wrong = evaluate(generate, per_skill=args.per_skill)
        table[f"temperature {temperature}"] = result
        if args.show_wrong:
            logger.info("\n".join(wrong))
    for skill in table["temperature 0.0"]:
        figures = "  ".join(f"{100 * column[skill]:5.1f} %" for column in table.values())
        logger.info("%-12s %s", skill, figures)
    report = {"held_out_seed": HELD_OUT_SEED, "cases_per_skill": args.per_skill, "scores": table}
    (args.folder / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
