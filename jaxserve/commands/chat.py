"""`jaxserve chat`: talk with a model, in this process."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from jaxserve.commands.arguments import add_engine_arguments, model_of, say
from jaxserve.config.flags import ENGINE_FLAGS, SAMPLING_FLAGS, add_flags, given, sampling_fields
from jaxserve.errors import ContextLengthError, InvalidRequestError

if TYPE_CHECKING:
    from jaxserve.api.request import TokenEvent

HELP = "talk with a model"
RESET = "/reset"

type Message = dict[str, str]
type Ask = Callable[[list[Message]], Generator[TokenEvent]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_engine_arguments(parser)
    parser.add_argument("--system-prompt", metavar="TEXT", help="what the model is told first")
    parser.add_argument(
        "-q", "--quick", "--message", dest="message", metavar="TEXT", help="answer this one message"
    )
    add_flags(parser, "sampling (by default as the model's authors recommend)", SAMPLING_FLAGS)


def run(args: argparse.Namespace) -> int:
    """Answer one message, or each line of standard input until it ends."""
    from jaxserve.offline.llm import LLM

    llm = LLM(model_of(args), report=say, **given(args, ENGINE_FLAGS))
    # Half of the context is left for what was said before.
    fields = {"max_tokens": llm.plan.scheduler.max_model_len // 2, **sampling_fields(args)}
    params = dataclasses.replace(llm.get_default_sampling_params(), **fields)
    first = [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []

    def ask(messages: list[Message]) -> Generator["TokenEvent"]:
        return llm.stream([*first, *messages], params)

    if args.message is None:
        talk(ask)
    else:
        answer(ask, [{"role": "user", "content": args.message}])
    return 0


def talk(ask: Ask) -> None:
    """Answer line by line. Ctrl-C ends an answer, and between answers the talk."""
    sign = ""
    if sys.stdin.isatty():
        with suppress(ImportError):  # some Pythons are built without
            import readline  # noqa: F401  (gives input() its editing and history)
        sign = "> "
        say(f"Ctrl-C stops an answer, {RESET} starts anew, Ctrl-D ends.")
    history: list[Message] = []
    while True:
        try:
            line = input(sign).strip()
        except EOFError:
            return
        if line == RESET:
            history = []
        elif line:
            try:
                history = answer(ask, [*history, {"role": "user", "content": line}])
            except InvalidRequestError as error:
                say(str(error))


def answer(ask: Ask, messages: list[Message]) -> list[Message]:
    """Print the answer to the last message as it comes; return the messages with the answer.

    Where the context is full, the oldest messages are forgotten, two at a time.
    """
    try:
        events = ask(messages)
    except ContextLengthError:
        if len(messages) <= 2:
            raise
        return answer(ask, messages[2:])
    text = ""
    with closing(events), suppress(KeyboardInterrupt):
        for event in events:
            text += event.text
            print(event.text, end="", flush=True)
    print()
    return [*messages, {"role": "assistant", "content": text}]
