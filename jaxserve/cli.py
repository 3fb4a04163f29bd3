"""The command line: `jaxserve serve`, `chat`, `generate`, `run-batch`, `plan` and so on."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from jaxserve import __version__
from jaxserve.commands import bench, chat, generate, keys, plan, profile, run_batch, serve
from jaxserve.commands import compile as compile_
from jaxserve.commands.arguments import Parser, say
from jaxserve.errors import JaxserveError
from jaxserve.processes.leave import leave

COMMANDS = {
    "serve": serve,
    "chat": chat,
    "generate": generate,
    "run-batch": run_batch,
    "plan": plan,
    "compile": compile_,
    "bench": bench,
    "profile": profile,
    "keys": keys,
}
INTERRUPTED = 130  # as shells report for Ctrl-C


def run() -> NoReturn:
    """Entry point of the program `jaxserve`."""
    leave(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Errors that a user can fix are one line on standard error. Their exit status is 1, 2 for invalid
    arguments, and 3 for a server whose processes died too often.
    """
    # Otherwise transformers warns that PyTorch is missing.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        args = _parser().parse_args(argv)
        for note in getattr(args, "notes", ()):
            say(f"jaxserve: {note}")
        status: int = args.run(args)
        sys.stdout.flush()
    except JaxserveError as error:
        print(f"jaxserve: error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the output has closed it, so Python must not flush the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _parser() -> Parser:
    parser = Parser(prog="jaxserve", description="Serve open-weight language models on JAX.")
    parser.add_argument("--version", action="version", version=f"jaxserve {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.HELP, description=command.__doc__)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser
