"""Arguments and output that commands share."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxserve.config import EngineOptions
from jaxserve.errors import ConfigError
from jaxserve.flag import add_flags
from jaxserve.flags import ENGINE_FLAGS


class Parser(argparse.ArgumentParser):
    """A parser that takes flags by their full names, and complains in one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments, and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class ConfigFile(argparse.Action):
    """`--config FILE`: flags from a YAML file, by their names without dashes.

    A list gives a flag several values; true and false are the flag and its `--no-` form. The
    command line has the last word.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,  # noqa: ARG002  (argparse passes it)
    ) -> None:
        """Add what the file says to the arguments that have been read so far."""
        from_file = parser.parse_args([*_read_flags(Path(str(values)))])
        for name, value in vars(from_file).items():
            default = parser.get_default(name)
            if getattr(namespace, name, default) == default:
                setattr(namespace, name, value)


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the config file, and everything about the engine."""
    parser.add_argument(
        "model", nargs="?", help="a folder or a hub name (default: the model that jaxserve brings)"
    )
    parser.add_argument("--model", dest="model_flag", help=argparse.SUPPRESS)
    parser.add_argument(
        "--config", action=ConfigFile, metavar="FILE", help="a YAML file of flags and values"
    )
    add_flags(parser, "engine", ENGINE_FLAGS, defaults=EngineOptions)


def add_target(parser: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Add the hardware to work for."""
    parser.add_argument(
        "--target",
        metavar="NAME",
        help="h100, h200, b200, a100, v4, v5e, v5p, v6e, v7x or cpu (default: what is here)",
    )


def model_of(args: argparse.Namespace) -> str | None:
    """Return the model asked for, by position or else by flag; None for the embedded one."""
    model: str | None = args.model if args.model is not None else args.model_flag
    return model


def say(line: str) -> None:
    """Tell the person at the terminal; standard output is kept for results."""
    print(line, file=sys.stderr, flush=True)


def _read_flags(path: Path) -> Iterator[str]:
    """Yield the contents of a config file as arguments."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config must be a readable YAML file, got {path}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"config must be a YAML file of flags and values, got {path}")
    if "config" in values:
        raise ConfigError(f"config cannot be set by a config file, {path} does")
    for name, value in values.items():
        flag = "--" + str(name).replace("_", "-")
        match value:
            case True:
                yield flag
            case False:
                yield flag.replace("--", "--no-", 1)
            case list():
                yield flag
                yield from map(str, value)
            case str() | int() | float():
                # One word, so that a value may begin with a dash.
                yield f"{flag}={value}"
            case _:
                raise ConfigError(f"{name} in {path} must be a value or a list, got {value!r}")
