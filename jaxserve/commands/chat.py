"""`jaxserve chat`: chat with a model in this process."""

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

HELP = "chat with a model in the terminal"
RESET = "/reset"

type Message = dict[str, str]
type Ask = Callable[[list[Message]], Generator[TokenEvent]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_engine_arguments(parser)
    # As in vLLM, -q is the message here, and --quantization elsewhere.
    parser.conflict_handler = "resolve"
    group = parser.add_argument_group("chat")
    group.add_argument("--system-prompt", metavar="TEXT", help="system prompt")
    group.add_argument(
        "-q",
        "--quick",
        "--message",
        dest="message",
        metavar="TEXT",
        help="answer this message and exit",
    )
    add_flags(parser, "sampling (default: the model's recommendations)", SAMPLING_FLAGS)


def run(args: argparse.Namespace) -> int:
    """Answer one message, or each line of standard input."""
    from jaxserve.offline.llm import LLM

    llm = LLM(model_of(args), report=say, **given(args, ENGINE_FLAGS))
    # Leave half of the context for the conversation.
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
    """Answer each input line. Ctrl-C stops an answer, or the program between answers."""
    sign = ""
    if sys.stdin.isatty():
        with suppress(ImportError):  # not in every build of Python
            import readline  # noqa: F401  (adds editing and history to input())
        sign = "> "
        say(f"Ctrl-C stops an answer, {RESET} clears the conversation, Ctrl-D exits.")
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
    """Stream the answer to the last message to standard output; return messages and answer.

    If the context is full, drop the oldest messages, two at a time.
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
