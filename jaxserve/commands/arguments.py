"""Arguments and output shared by commands."""

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
    """Argument parser without abbreviations and with one-line errors.

    As in vLLM, it reads `--max_model_len` as `--max-model-len`, and `--pooler-config.use_activation
    false` as `--pooler-config '{"use_activation": false}'`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    # The overloads of the parent, which return the type of the namespace, are not repeated here.
    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse arguments. Exit with status 2 if any is unknown."""
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
        """Print the error and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class ConfigFile(argparse.Action):
    """`--config FILE`: flags from a YAML file, named without leading dashes.

    A list gives a flag several values; true and false are the flag and its `--no-` form. The
    command line takes precedence.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,  # noqa: ARG002  (argparse passes it)
    ) -> None:
        """Set arguments from the file, unless the command line has set them."""
        from_file = parser.parse_args([*_read_flags(Path(str(values)))])
        for name, value in vars(from_file).items():
            default = parser.get_default(name)
            if getattr(namespace, name, default) == default:
                setattr(namespace, name, value)


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, `--config` and the engine flags."""
    parser.add_argument(
        "model", nargs="?", help="a folder or a hub name (default: the model in the package)"
    )
    parser.add_argument("--model", dest="model_flag", help=argparse.SUPPRESS)
    parser.add_argument(
        "--config", action=ConfigFile, metavar="FILE", help="YAML file with flags and values"
    )
    add_flags(parser, "engine", ENGINE_FLAGS, defaults=EngineOptions)
    parser.set_defaults(notes=[])
    for flag in INERT_FLAGS:
        add_inert(parser, flag)


def add_inert(parser: argparse.ArgumentParser, flag: InertFlag) -> None:
    """Add a flag of vLLM that has no effect. Lines to report are appended to `notes`."""

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
    """Add `--target`."""
    parser.add_argument(
        "--target",
        metavar="NAME",
        help="h100, h200, b200, a100, v4, v5e, v5p, v6e, v7x or cpu (default: this machine)",
    )


def model_of(args: argparse.Namespace) -> str | None:
    """Return the positional model argument or `--model`; None for the model in the package."""
    model: str | None = args.model if args.model is not None else args.model_flag
    return model


def say(line: str) -> None:
    """Print a line to standard error; standard output is for results."""
    print(line, file=sys.stderr, flush=True)


def _normalized(arguments: Sequence[str]) -> Iterator[str]:
    """Yield arguments with dashes in flag names and dotted flags merged into JSON objects."""
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
            # A flag without a value is a switch.
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
    """Yield the contents of a config file as command line arguments."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config must be a readable YAML file, got {path}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"config must be a YAML file with flags and values, got {path}")
    if "config" in values:
        raise ConfigError(f"config cannot be set by a config file, but {path} sets it")
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
                # A single argument, so that a value may start with a dash.
                yield f"{flag}={value}"
            case _:
                raise ConfigError(f"{name} in {path} must be a value or a list, got {value!r}")
