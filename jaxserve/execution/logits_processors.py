"""Logits processors: operator-supplied changes of logits, compiled into the step."""

import hashlib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxserve.api.sampling_params import SamplingParams
from jaxserve.errors import ConfigError, InvalidRequestError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ProcessorInput:
    """Per-row input of a logits processor. XLA removes the fields that it does not use."""

    values: jax.Array  # float32[rows, num_values], values of the row's request
    in_prompt: jax.Array  # bool[rows, vocab], whether the prompt has the token
    counts: jax.Array  # int32[rows, vocab], how often it was generated
    recent: jax.Array  # int32[rows, 7], the newest tokens, the last one last; vocab_size pads
    lengths: jax.Array  # int32[rows], tokens of prompt and output so far


class LogitsProcessor(ABC):
    """Function of logits in pure JAX that runs on the device as part of the step.

    `names` are the keys of `SamplingParams.extra_args` (over HTTP: `vllm_xargs`) that select the
    processor and set its values. A processor without names applies to every request. It changes
    only the rows of those requests. Penalties, biases, bans and grammars apply after it.
    """

    names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    @property
    def num_values(self) -> int:
        """Length of the result of `values`: one per name by default."""
        return len(self.names)

    def values(self, arguments: Mapping[str, Any]) -> Sequence[float]:
        """Return the values of a request for the device; called once, on the host.

        arguments: the request's arguments whose keys are in `names`, at least one if there are
        names. By default every name is required and must be a finite number. Raises
        InvalidRequestError to reject the request.
        """
        for name in self.names:
            value: Any = arguments.get(name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value):
                raise InvalidRequestError(
                    f"extra_args.{name} must be a finite number, got {value!r:.60}",
                    param="extra_args",
                )
        return [arguments[name] for name in self.names]

    @abstractmethod
    def __call__(self, logits: jax.Array, inputs: ProcessorInput) -> jax.Array:
        """Return changed logits, float32[rows, vocab].

        Traced once per program. A row of the result must depend on the same row of the inputs only.
        """


@dataclass(frozen=True)
class LogitsProcessors:
    """Logits processors of an engine, in the order of application.

    A request's values form one row: for each processor, 1 if it applies, followed by its values.
    """

    processors: tuple[LogitsProcessor, ...] = ()

    @staticmethod
    def load(places: Iterable[str], *, vocab_size: int) -> "LogitsProcessors":
        """Create the processors from class names, `module:Class`; raises ConfigError."""
        return LogitsProcessors(tuple(_find(place)(vocab_size=vocab_size) for place in places))

    @property
    def row_size(self) -> int:
        """Numbers per row."""
        return sum(1 + processor.num_values for processor in self.processors)

    @property
    def key(self) -> str:
        """Cache key of the processors: their names and source digests."""
        return ", ".join(f"{place_of(type(p))} {_source_hash(type(p))}" for p in self.processors)

    def check(self, params: SamplingParams) -> None:
        """Raise InvalidRequestError if a request's arguments are not valid."""
        self.row(params)

    def row(self, params: SamplingParams) -> np.ndarray | None:
        """Return the request's row, float32[row_size]; None if no processor applies."""
        arguments = params.extra_args
        known = {name for processor in self.processors for name in processor.names}
        for name in arguments:
            if name not in known:
                there_is = ", ".join(sorted(known)) or "no logits processor that reads any"
                raise InvalidRequestError(
                    f"extra_args has no argument {name!r:.60}: there is {there_is}",
                    param="extra_args",
                )
        row: list[float] = []
        applies = False
        for processor in self.processors:
            own = {name: arguments[name] for name in processor.names if name in arguments}
            if own or not processor.names:
                values = processor.values(own)
                assert len(values) == processor.num_values, processor
                row += (1.0, *values)
                applies = True
            else:
                row += [0.0] * (1 + processor.num_values)
        return np.array(row, np.float32) if applies else None

    def __call__(self, logits: jax.Array, inputs: ProcessorInput) -> jax.Array:
        """Apply the processors; `inputs.values` is float32[rows, row_size]."""
        rows = inputs.values
        start = 0
        for processor in self.processors:
            stop = start + 1 + processor.num_values
            changed = processor(logits, replace(inputs, values=rows[:, start + 1 : stop]))
            logits = jnp.where(rows[:, start, None] == 1.0, changed, logits)
            start = stop
        return logits


NO_PROCESSORS = LogitsProcessors()


def place_of(processor: type[LogitsProcessor]) -> str:
    """Return the name of a class as `module:Class`."""
    return f"{processor.__module__}:{processor.__qualname__}"


def _find(place: str) -> type[LogitsProcessor]:
    module, _, name = place.partition(":")
    try:
        found = attrgetter(name)(import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"logits_processors must be module:Class, importable from here, got {place!r}: {error}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, LogitsProcessor)):
        raise ConfigError(f"logits_processors must be subclasses of LogitsProcessor, got {place!r}")
    return found


def _source_hash(processor: type[LogitsProcessor]) -> str:
    """Return a digest of the file that defines a class."""
    return hashlib.sha256(Path(inspect.getfile(processor)).read_bytes()).hexdigest()[:16]
