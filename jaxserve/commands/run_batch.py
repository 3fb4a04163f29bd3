"""`jaxserve run-batch`: answer a file of requests without a server."""

import argparse
from collections.abc import Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any

from jaxserve.commands.arguments import add_engine_arguments, add_inert, model_of, say
from jaxserve.config.flags import (
    ENGINE_FLAGS,
    SERVER_FLAGS,
    add_flags,
    engine_options,
    given,
    server_config,
)
from jaxserve.config.vllm_flags import BATCH_FLAGS
from jaxserve.errors import ConfigError, InvalidRequestError

if TYPE_CHECKING:
    from jaxserve.server.batches.lines import LineRunner, Numbered
    from jaxserve.server.batches.schema import Result

HELP = "answer a file of requests"
# Enough to fill the engine; requests that do not fit into its queue wait.
CONCURRENCY = 512
# Server flags that change answers.
ANSWER_FLAGS = tuple(
    flag
    for flag in SERVER_FLAGS
    if flag.name
    in {
        "chat-template-content-format",
        "default-chat-template-kwargs",
        "enable-auto-tool-choice",
        "enable-per-request-metrics",
        "reasoning-parser",
        "return-tokens-as-token-ids",
        "strict-fields",
        "tool-call-parser",
        "trust-request-chat-template",
    }
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "-i",
        "--input-file",
        required=True,
        type=Path,
        metavar="FILE",
        help="file of requests, one JSON object per line, in OpenAI's batch format",
    )
    parser.add_argument(
        "-o",
        "--output-file",
        required=True,
        type=Path,
        metavar="FILE",
        help="file for the results, one JSON object per line, as they finish",
    )
    add_engine_arguments(parser)
    add_flags(parser, "answers", ANSWER_FLAGS)
    for flag in BATCH_FLAGS:
        add_inert(parser, flag)


def run(args: argparse.Namespace) -> int:
    """Write a result for every request. Return 0 even if some are errors."""
    import asyncio

    from jaxserve.client.in_process import InProcessClient
    from jaxserve.commands.engine_process import load
    from jaxserve.processes.api import load_tokenizer, served_model
    from jaxserve.processes.messages import Hello
    from jaxserve.server.app import create_app

    options = engine_options(model_of(args), given(args, ENGINE_FLAGS))
    config = server_config(given(args, ANSWER_FLAGS))
    # Validate the input before loading the model.
    lines = [*_read(args.input_file)]
    with _open_output(args.output_file, source=args.input_file) as target:
        if not lines:
            say("the input has no requests")
            return 0
        hellos: list[Hello] = []
        served = load(options, hellos.append)
        tokenizer = load_tokenizer(hellos[0])
        client = InProcessClient(served.engine, tokenizer.backend)

        async def answer() -> None:
            with TemporaryDirectory(prefix="jaxserve-") as folder:
                app = create_app(
                    [served_model(hellos[0], client, tokenizer, config)],
                    metrics=served.metrics,
                    config=config,
                    folder=Path(folder),
                )
                try:
                    await _answer_all(app.state.lines, lines, target)
                finally:
                    await client.shutdown(drain_timeout_s=0.0)

        asyncio.run(answer())
    return 0


def _read(source: Path) -> Iterator["Numbered"]:
    """Yield the requests of a file with line numbers. Raises ConfigError with the line."""
    from jaxserve.server.batches.schema import lines_of, parse_line

    seen: set[str] = set()
    try:
        with source.open("rb") as file:
            for number, text in lines_of(file):
                if not text.strip():
                    continue
                try:
                    line = parse_line(text)
                except InvalidRequestError as error:
                    raise ConfigError(f"line {number} of {source}: {error.message}") from error
                if line.custom_id in seen:
                    raise ConfigError(
                        f"line {number} of {source}: custom_id {line.custom_id!r} is not unique"
                    )
                seen.add(line.custom_id)
                yield number, line
    except OSError as error:
        raise ConfigError(f"cannot open {source}: {error.strerror}") from error


def _open_output(target: Path, *, source: Path) -> IO[bytes]:
    """Open the output, which may be a link or a device. Raises ConfigError."""
    if target.exists() and target.samefile(source):
        raise ConfigError(f"the output file {target} is the input file")
    try:
        return target.open("wb")
    except OSError as error:
        raise ConfigError(f"cannot open {target}: {error.strerror}") from error


def _as_vllm(result: "Result") -> dict[str, Any]:
    """Return a result as vLLM's run-batch writes it: `error` is the body of an error.

    OpenAI's batches have it in `response.body`, where scripts for vLLM would not look.
    """
    import msgspec

    fields: dict[str, Any] = msgspec.to_builtins(result)
    if result.is_error and result.error is None:
        fields["error"] = fields["response"]["body"]
        fields["response"]["body"] = None
    return fields


async def _answer_all(runner: "LineRunner", lines: list["Numbered"], target: IO[bytes]) -> None:
    """Write the result of each line to a file as it finishes. Raises ConfigError."""
    import msgspec
    from tqdm import tqdm

    num_failed = 0
    with tqdm(total=len(lines), unit="request", disable=None) as bar:
        async with aclosing(runner.answer_all(lines, concurrency=CONCURRENCY)) as answers:
            async for some in answers:
                try:
                    results = (_as_vllm(result) for _, result in some)
                    target.writelines(msgspec.json.encode(each) + b"\n" for each in results)
                    target.flush()
                except OSError as error:
                    # Closing flushes the rest and must not mask this error.
                    with suppress(OSError):
                        target.close()
                    raise ConfigError(f"cannot write {target.name}: {error.strerror}") from error
                num_failed += sum(result.is_error for _, result in some)
                bar.update(len(some))
    failed = f", {num_failed} failed" if num_failed else ""
    say(f"answered {len(lines) - num_failed} of {len(lines)} requests{failed}")
