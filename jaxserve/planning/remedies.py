"""Suggest options with which a model fits in memory. Each suggestion is verified by planning."""

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from jaxserve.config.engine import EngineOptions
from jaxserve.config.flags import ENGINE_FLAGS
from jaxserve.errors import MemoryPlanError
from jaxserve.execution.memory import ContextMemoryError

# Leave some memory of a device for uses that a plan does not know.
_MOST_MEMORY = 0.98
_MOST_DEVICES = 8
# Free memory may change before the user follows the advice.
_MARGIN = 1.03
_LARGEST = {"max_num_batched_tokens": 8192, "max_num_seqs": 256}
# Smallest useful value of a limit.
_LEAST = 8

_FLAG_OF = {flag.field: f"--{flag.name}" for flag in ENGINE_FLAGS}
_DEFAULTS = {field.name: field.default for field in fields(EngineOptions)}


def remedies(
    options: EngineOptions, error: MemoryPlanError, fits: Callable[[EngineOptions], bool]
) -> str:
    """Return changes of a single option with which `options` fit, as tested by `fits`."""
    others: list[str] = []
    given: list[str] = []
    if options.kv_cache_memory_bytes and fits(replace(options, kv_cache_memory_bytes=None)):
        given.append("no --kv-cache-memory-bytes")
    if options.num_pages and fits(replace(options, num_pages=None)):
        given.append("no --num-gpu-blocks-override")
    for name, values in _candidates(options, error):
        value = next((value for value in values if fits(replace(options, **{name: value}))), None)
        if value is not None:
            was = getattr(options, name)
            if was == _DEFAULTS[name]:
                others.append(f"{_FLAG_OF[name]} {value}")
            else:
                given.append(f"{_FLAG_OF[name]} {value} instead of {was}")
    if others or given:
        return f"Any one of these makes it fit: {', '.join([*others, *given])}"
    return "No single option makes it fit: use more memory or a smaller model"


def _candidates(
    options: EngineOptions, error: MemoryPlanError
) -> Iterator[tuple[str, Iterator[Any]]]:
    """Yield options that may help with values to try, smallest change first."""
    if isinstance(error, ContextMemoryError) and error.num_tokens:
        yield "max_model_len", iter([int(error.num_tokens / _MARGIN) or error.num_tokens])
    yield "memory_fraction", _fractions(options, error)
    for name in ("max_num_batched_tokens", "max_num_seqs"):
        # Start from the larger of the defaults: larger values do not fit either.
        yield name, _halves(getattr(options, name) or _LARGEST[name])
    if options.kv_cache_dtype == "auto":
        yield "kv_cache_dtype", iter(["fp8"])
    if options.quantization is None:
        yield "quantization", iter(["int8"])
    if options.dtype in {"auto", "float32"}:
        yield "dtype", iter(["bfloat16"])
    yield "tensor_parallel_size", _doubles(options.tensor_parallel_size)


def _fractions(options: EngineOptions, error: MemoryPlanError) -> Iterator[float]:
    wanted = options.memory_fraction * error.needed * _MARGIN
    for value in (math.ceil(wanted * 100) / 100 if wanted < 1 else 1.0, _MOST_MEMORY):
        if options.memory_fraction < value <= _MOST_MEMORY:
            yield value


def _halves(value: int) -> Iterator[int]:
    while value >= 2 * _LEAST:
        value //= 2
        yield value


def _doubles(value: int) -> Iterator[int]:
    while 2 * value <= _MOST_DEVICES:
        value *= 2
        yield value
