"""`jaxserve serve`: run an OpenAI-compatible server."""

import argparse
import socket

from jaxserve import __version__
from jaxserve.commands.arguments import add_engine_arguments, model_of
from jaxserve.config.flags import (
    ENGINE_FLAGS,
    SERVER_FLAGS,
    add_flags,
    engine_options,
    given,
    server_config,
)
from jaxserve.config.server import ServerConfig

HELP = "run an OpenAI-compatible server"
LOG_LEVELS = ("debug", "info", "warning", "error")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_engine_arguments(parser)
    add_flags(parser, "server", SERVER_FLAGS, defaults=ServerConfig)
    parser.add_argument(
        "--log-level", choices=LOG_LEVELS, default="info", help="(default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until stopped. Return the exit status."""
    import asyncio
    from contextlib import nullcontext
    from pathlib import Path

    from jaxserve.access.key_store import KeyStore
    from jaxserve.observability.logging import configure_logging
    from jaxserve.processes.supervisor import Supervisor
    from jaxserve.server.batches.store import claimed
    from jaxserve.server.http.extensions import extension
    from jaxserve.server.transport.listener import bound

    options = engine_options(model_of(args), given(args, ENGINE_FLAGS))
    config = server_config(given(args, SERVER_FLAGS))
    configure_logging(args.log_level, process="main")

    async def supervise(listener: socket.socket) -> int:
        url = url_of(listener, config)

        def announce(names: tuple[str, ...]) -> None:
            print(f"jaxserve {__version__} serves {', '.join(names)} at {url}", flush=True)

        supervisor = Supervisor(
            [options], config, listener=listener, announce=announce, log_level=args.log_level
        )
        return await supervisor.run()

    # Check extensions and the port before loading the model.
    for place in config.middleware:
        extension(place)
    if config.key_store is not None:
        KeyStore(Path(config.key_store)).check()
    claim = nullcontext() if config.batch_dir is None else claimed(Path(config.batch_dir))
    with claim, bound(config) as listener:
        return asyncio.run(supervise(listener))


def url_of(listener: socket.socket, config: ServerConfig) -> str:
    """Return the base URL of a server for its listening socket."""
    if config.uds is not None:
        return f"unix:{config.uds}"
    address, port = listener.getsockname()[:2]
    host = f"[{address}]" if ":" in address else address
    return f"{'http' if config.ssl_certfile is None else 'https'}://{host}:{port}"
