"""Arguments and output that commands share."""

import argparse
import difflib
import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxserve.config.engine import EngineOptions
from jaxserve.config.flags import ENGINE_FLAGS, add_flags
from jaxserve.config.inert_flag import InertFlag
from jaxserve.config.vllm_flags import INERT_FLAGS
from jaxserve.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """A parser that takes flags by their full names, and complains in one line.

    As vLLM's, it reads `--max_model_len` as `--max-model-len`, and `--pooler-config.use_activation
    false` as `--pooler-config '{"use_activation": false}'`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    # The overloads of the parent, which return the type of the namespace, are not repeated here.
    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse arguments, and exit with status 2 at the first that is not known."""
        normalized = [*_normalized(sys.argv[1:] if args is None else args)]
        known, extra = super().parse_known_args(normalized, namespace)
        if extra:
            self.error(f"unrecognized arguments: {' '.join(extra)}{self._suggestion(extra)}")
        return known, extra

    def _suggestion(self, extra: Iterable[str]) -> str:
        for argument in extra:
            name = argument.partition("=")[0]
            near = difflib.get_close_matches(name, self._option_string_actions, n=1)
            if near and name.startswith("-"):
                return f"; did you mean {near[0]}?"
        return ""

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
    parser.set_defaults(notes=[])
    for flag in INERT_FLAGS:
        add_inert(parser, flag)


def add_inert(parser: argparse.ArgumentParser, flag: InertFlag) -> None:
    """Accept a flag of vLLM's that has no effect; what is to be reported goes into `notes`."""

    class Note(argparse.Action):
        def __call__(
            self,
            parser: argparse.ArgumentParser,  # noqa: ARG002  (argparse passes it)
            namespace: argparse.Namespace,
            values: str | Sequence[Any] | None,
            option_string: str | None = None,
        ) -> None:
            value: object = values
            if flag.switch:
                value = not (option_string or "").startswith("--no-")
            try:
                note = flag.note(value, called=f"--{flag.name}")
            except ConfigError as error:
                raise argparse.ArgumentError(None, str(error)) from error
            namespace.notes = [*namespace.notes, note]

    names = [f"--{flag.name}", *([f"--no-{flag.name}"] if flag.switch else []), *flag.aliases]
    parser.add_argument(
        *names,
        action=Note,
        nargs=0 if flag.switch else "+" if flag.many else None,
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )


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


def _normalized(arguments: Sequence[str]) -> Iterator[str]:
    """Yield arguments with dashes for underscores in the names of flags, and no dotted flags."""
    nested: dict[str, dict[str, Any]] = {}
    rest = deque(arguments)
    while rest:
        argument = rest.popleft()
        if argument == "--":
            yield argument
            yield from rest
            break
        if not argument.startswith("--"):
            yield argument
            continue
        flag, equals, value = argument.partition("=")
        name, dot, path = flag.partition(".")
        name = name.replace("_", "-")
        if not dot:
            yield name + equals + value
            continue
        if not equals:
            # Without a value it is a switch.
            value = "true" if not rest or rest[0].startswith("--") else rest.popleft()
        *outer, last = path.split(".")
        inner = nested.setdefault(name, {})
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = _json_or_text(value)
    for name, values in nested.items():
        yield f"{name}={json.dumps(values)}"


def _json_or_text(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


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
