"""Logits processors: changes to logits that an operator adds, compiled into the step."""

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
    """What a processor knows of its rows; XLA drops what it does not read."""

    values: jax.Array  # float32[rows, num_values], of each row's request
    in_prompt: jax.Array  # bool[rows, vocab], whether the token stands in the prompt
    counts: jax.Array  # int32[rows, vocab], how often it was generated
    recent: jax.Array  # int32[rows, 7], the newest tokens, the last one last; vocab_size pads
    lengths: jax.Array  # int32[rows], tokens of prompt and answer so far


class LogitsProcessor(ABC):
    """A change of logits in pure JAX, which runs on the device inside the step.

    `names` are the keys of `SamplingParams.extra_args` (over HTTP: `vllm_xargs`) by which requests
    ask for it and set its values; one without names applies to every request. It changes the rows
    of those requests alone, before penalties, biases, bans and grammars, which so keep the last
    word. What nobody asks for costs nothing.
    """

    names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    @property
    def num_values(self) -> int:
        """How many numbers `values` returns: by default one for each name."""
        return len(self.names)

    def values(self, arguments: Mapping[str, Any]) -> Sequence[float]:
        """Return the numbers that the device gets to know of a request; on the host, once.

        arguments: those of `names` that the request gives, one at least. By default each must be
        there, and a finite number. Raises InvalidRequestError, which refuses the request.
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
        """Return other logits for float32[rows, vocab].

        Traced once for each program. Each row depends on what is its own alone.
        """


@dataclass(frozen=True)
class LogitsProcessors:
    """Those of an engine, in the order in which they apply.

    What a request wants of them is one row of numbers: for each processor, 1 if it applies, and
    its values.
    """

    processors: tuple[LogitsProcessor, ...] = ()

    @staticmethod
    def load(places: Iterable[str], *, vocab_size: int) -> "LogitsProcessors":
        """Make the processors of classes named `module:Class`; raises ConfigError."""
        return LogitsProcessors(tuple(_find(place)(vocab_size=vocab_size) for place in places))

    @property
    def row_size(self) -> int:
        """How many numbers a row has."""
        return sum(1 + processor.num_values for processor in self.processors)

    @property
    def key(self) -> str:
        """A word that changes with what the processors are and with their source."""
        return ", ".join(f"{place_of(type(p))} {_source_hash(type(p))}" for p in self.processors)

    def check(self, params: SamplingParams) -> None:
        """Raise InvalidRequestError unless a request's arguments are what the processors take."""
        self.row(params)

    def row(self, params: SamplingParams) -> np.ndarray | None:
        """Return float32[row_size], None if no processor applies to the request."""
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
        """Apply all of them to the rows that want them; the values are float32[rows, row_size]."""
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
    """Return `module:Class` of a class."""
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
    """Return a digest of the file that a class is in: as good as its program's."""
    return hashlib.sha256(Path(inspect.getfile(processor)).read_bytes()).hexdigest()[:16]
