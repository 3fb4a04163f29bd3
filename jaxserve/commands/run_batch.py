"""`jaxserve run-batch`: a file of requests in, a file of answers out, without a server."""

import argparse
from contextlib import aclosing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from jaxserve.commands.arguments import add_engine_arguments, model_of, say
from jaxserve.errors import ConfigError
from jaxserve.flag import given
from jaxserve.flags import ENGINE_FLAGS, engine_options

if TYPE_CHECKING:
    from jaxserve.server.batch_runner import LineRunner, Numbered
    from jaxserve.server.protocol.batches import Result

HELP = "answer a file of requests"
# Enough to fill the engine; those that find no room in its queue wait.
CONCURRENCY = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "-i",
        "--input-file",
        required=True,
        type=Path,
        metavar="FILE",
        help="requests, a line of JSON each, as OpenAI's batches have them",
    )
    parser.add_argument(
        "-o",
        "--output-file",
        required=True,
        type=Path,
        metavar="FILE",
        help="where the answers go, in the order of the requests",
    )
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write an answer for every request; return 1 if any could not be answered."""
    import asyncio

    from jaxserve.client.in_process import InProcessClient
    from jaxserve.commands.engine_process import load
    from jaxserve.processes.api import load_tokenizer, served_model
    from jaxserve.processes.messages import Hello
    from jaxserve.server.app import create_app
    from jaxserve.server.batch_runner import check_lines, read_lines
    from jaxserve.server.config import ServerConfig

    source: Path = args.input_file
    # Before the model is loaded, which takes a while.
    try:
        _, errors = check_lines(source, endpoint=None)
        args.output_file.open("ab").close()
    except OSError as error:
        raise ConfigError(f"cannot open {error.filename}: {error.strerror}") from error
    if errors:
        raise ConfigError(f"line {errors[0].line} of {source}: {errors[0].message}")
    lines = list(read_lines(source))
    hellos: list[Hello] = []
    served = load(engine_options(model_of(args), given(args, ENGINE_FLAGS)), hellos.append)
    tokenizer = load_tokenizer(hellos[0])
    client = InProcessClient(served.engine, tokenizer.backend)

    async def answer() -> int:
        with TemporaryDirectory(prefix="jaxserve-") as folder:
            app = create_app(
                [served_model(hellos[0], client, tokenizer, ServerConfig())],
                metrics=served.metrics,
                config=ServerConfig(),
                folder=Path(folder),
            )
            try:
                return await _answer_all(app.state.lines, lines, args.output_file)
            finally:
                await client.shutdown(drain_timeout_s=0.0)

    return asyncio.run(answer())


async def _answer_all(runner: "LineRunner", lines: list["Numbered"], target: Path) -> int:
    """Write the answers of lines to a file, whole or not at all; return the exit status."""
    import msgspec
    from tqdm import tqdm

    results: dict[int, Result] = {}
    with tqdm(total=len(lines), unit="request", disable=None) as bar:
        async with aclosing(runner.answer_all(lines, concurrency=CONCURRENCY)) as answers:
            async for some in answers:
                results |= some
                bar.update(len(some))
    unfinished = target.with_name(f"{target.name}.part")
    with unfinished.open("wb") as file:
        file.writelines(msgspec.json.encode(results[number]) + b"\n" for number, _ in lines)
    unfinished.replace(target)
    num_failed = sum(result.is_error for result in results.values())
    say(f"answered {len(lines) - num_failed} of {len(lines)} requests, see {target}")
    return 1 if num_failed else 0
