"""`jaxserve serve`: a model behind an OpenAI-compatible server."""

import argparse
import gc
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from jaxserve.commands.arguments import add_engine_arguments, model_of, say
from jaxserve.config import EngineOptions
from jaxserve.flags import (
    ENGINE_FLAGS,
    SERVER_FLAGS,
    add_flags,
    engine_options,
    given,
    server_config,
)
from jaxserve.server.config import ServerConfig

if TYPE_CHECKING:
    from starlette.applications import Starlette

HELP = "serve a model to OpenAI clients"
LOG_LEVELS = ("debug", "info", "warning", "error")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_engine_arguments(parser)
    add_flags(parser, "server", SERVER_FLAGS, defaults=ServerConfig)
    parser.add_argument(
        "--log-level", choices=LOG_LEVELS, default="info", help="(default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop; return the exit status."""
    from jaxserve.logging import configure_logging
    from jaxserve.server.run import bind, serve

    options = engine_options(model_of(args), given(args, ENGINE_FLAGS))
    config = server_config(given(args, SERVER_FLAGS))
    configure_logging(args.log_level)
    # Before the model is loaded, which takes a while: the port may be taken.
    with bind(config) as listener:
        return serve(load_app(options, config, report=say), config, listener=listener)


def load_app(
    options: EngineOptions, config: ServerConfig, *, report: Callable[[str], None]
) -> "Starlette":
    """Load a model, start its engine, and return the application that serves it.

    report: told what happens, a line at a time. Raises what `plan_engine` and `build` raise.
    """
    from jaxserve.build import build
    from jaxserve.chat.template import ChatTemplate
    from jaxserve.client.in_process import InProcessClient
    from jaxserve.metrics import Metrics
    from jaxserve.planning import plan_engine
    from jaxserve.server.app import create_app
    from jaxserve.server.state import KernelChoice, ServedModel

    plan = plan_engine(options)
    names = options.served_model_names or (plan.name,)
    metrics = Metrics(max_model_len=plan.scheduler.max_model_len)
    loaded = build(plan, metrics=metrics.engine(names[0]), report=report)
    # As vLLM's dashboards know them.
    pages = {"block_size": plan.cache.page_size, "num_gpu_blocks": plan.cache.num_pages}
    metrics.set_cache_config({**asdict(plan.cache), **pages}, model_name=names[0])
    metrics.set_compilations(lambda: loaded.compilations.since_mark, model_name=names[0])
    tokenizer = loaded.tokenizer
    attention = plan.context.attention.choice
    model = ServedModel(
        names=names,
        client=InProcessClient(loaded.engine, tokenizer.backend),
        tokenizer=tokenizer,
        chat=None if tokenizer.chat_template is None else ChatTemplate(tokenizer),
        max_model_len=plan.scheduler.max_model_len,
        vocab_size=plan.model.vocab_size,
        defaults=loaded.generation,
        has_priorities=plan.scheduler.policy == "priority",
        fingerprint=f"{plan.dtype} {options.tensor_parallel_size}",
        kernels={
            "paged_attention": KernelChoice(
                backend=attention.backend, refusals=dict(attention.refusals)
            )
        },
    )
    app = create_app([model], metrics=metrics, config=config)
    # What is there now stays. To go through it all in search of garbage takes the collector a fifth
    # of a second, in the midst of a step (docs/performance.md).
    gc.collect()
    gc.freeze()
    return app
