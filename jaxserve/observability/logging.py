"""Structured logs: one JSON object per line, or coloured text on a terminal.

Prompts and answers are never logged. The renderer escapes values, so that requests cannot forge
lines. As a library jaxserve uses the standard `logging` without configuring it; programs call
`configure_logging`.
"""

import logging
import sys
from typing import TextIO, cast

import structlog
from structlog.stdlib import BoundLogger
from structlog.typing import Processor

# Libraries that log their own startup at the level of request logs.
_CHATTY = ("jax", "uvicorn")

_ENRICH: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def get_logger(name: str) -> BoundLogger:
    """Return the logger of a module: `log.info("what happened", count=3)`."""
    logger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[
            structlog.stdlib.filter_by_level,
            *_ENRICH,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=BoundLogger,
    )
    return cast(BoundLogger, logger)


def configure_logging(
    level: str = "info",
    *,
    stream: TextIO | None = None,
    as_json: bool | None = None,
    process: str | None = None,
) -> None:
    """Send the logs of this process, including libraries, to a stream.

    level: name of a standard level. stream: standard error by default. as_json: write JSON lines
    (default: if the stream is not a terminal). process: process name to add to every line.
    """
    target = sys.stderr if stream is None else stream
    as_json = not target.isatty() if as_json is None else as_json
    # Plain tracebacks, because richer ones show local variables such as prompts and keys.
    render: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        else [
            structlog.dev.ConsoleRenderer(
                colors=target.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_ENRICH,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_naming(process),
                *render,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for library in _CHATTY:
        logging.getLogger(library).setLevel("DEBUG" if level == "debug" else "WARNING")


def _naming(process: str | None) -> list[Processor]:
    if process is None:
        return []
    return [lambda _logger, _method, event: {**event, "process": process}]
