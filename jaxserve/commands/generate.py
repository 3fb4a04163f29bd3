"""`jaxserve generate`: continue prompts, as text or as JSON lines."""

import argparse
import dataclasses
import json
import sys

from jaxserve.commands.arguments import add_engine_arguments, model_of, say
from jaxserve.config.flags import ENGINE_FLAGS, SAMPLING_FLAGS, add_flags, given, sampling_fields

HELP = "continue prompts"
MAX_TOKENS = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_engine_arguments(parser)
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="text to continue (default: standard input); may be repeated",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per prompt, one per line"
    )
    add_flags(parser, "sampling (default: the model's recommendations)", SAMPLING_FLAGS)


def run(args: argparse.Namespace) -> int:
    """Print the prompts with their continuations."""
    from jaxserve.offline.llm import LLM

    prompts: list[str] = args.prompt or [sys.stdin.read()]
    llm = LLM(model_of(args), report=say, **given(args, ENGINE_FLAGS))
    max_tokens = min(MAX_TOKENS, llm.plan.scheduler.max_model_len // 2)
    fields = {"max_tokens": max_tokens, **sampling_fields(args)}
    params = dataclasses.replace(llm.get_default_sampling_params(), **fields)
    if len(prompts) == 1 and not args.json:
        print(prompts[0], end="", flush=True)
        for event in llm.stream(prompts[0], params):
            print(event.text, end="", flush=True)
        print()
        return 0
    for output in llm.generate(prompts, params):
        answer = output.outputs[0]
        if args.json:
            fields = {
                "prompt": output.prompt,
                "text": answer.text,
                "finish_reason": answer.finish_reason,
                "num_prompt_tokens": len(output.prompt_token_ids),
                "num_generated_tokens": len(answer.token_ids),
            }
            print(json.dumps(fields, ensure_ascii=False))
        else:
            print(f"{output.prompt}{answer.text}\n")
    return 0
