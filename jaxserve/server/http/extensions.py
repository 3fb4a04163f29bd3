"""Load the operator's own middleware."""

import importlib
import inspect
from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from jaxserve.errors import ConfigError


def extension(place: str) -> Middleware:
    """Return the middleware `module.name`: an ASGI class, or a coroutine function.

    As in FastAPI, a function is called with a Starlette request and `call_next`. The name comes
    from the operator and is trusted. Raises ConfigError.
    """
    module_name, _, name = place.replace(":", ".").rpartition(".")
    try:
        found: Any = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"middleware cannot import {place!r}: {error}") from error
    if inspect.isclass(found):
        made: Any = found
        return Middleware(made)
    if inspect.iscoroutinefunction(found):
        return Middleware(BaseHTTPMiddleware, dispatch=found)
    raise ConfigError(f"middleware must be a class or a coroutine function, got {place!r}")
