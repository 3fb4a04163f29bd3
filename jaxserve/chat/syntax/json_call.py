"""Calls that are one JSON object: `{"name": "weather", "arguments": {"city": "Oslo"}}`."""

from dataclasses import dataclass

from jaxserve.chat.pieces import Sink
from jaxserve.chat.source import Reading, Source
from jaxserve.chat.syntax import Schemas
from jaxserve.chat.syntax.json_value import read_arguments, read_short_string

NAMES = {"name", "function"}
ARGUMENTS = {"arguments", "parameters"}
# Keys that models add and no client needs.
ENVELOPE = {"id", "type"}
# Maximum number of characters of arguments to buffer when they precede the name.
MAX_BUFFERED_CHARS = 8192


@dataclass(frozen=True, slots=True)
class JsonCall:
    """A JSON object with the name and the arguments of a function, in any order.

    needs_arguments: whether an object without arguments is an answer in JSON instead of a call.
    """

    needs_arguments: bool = False

    @property
    def begins(self) -> tuple[str, ...]:
        """Empty, because other answers contain braces too."""
        return ()

    def read(self, source: Source, sink: Sink, schemas: Schemas) -> Reading[bool]:
        """See CallSyntax."""
        if not (yield from source.accept("{")):
            return False
        num_calls = sink.num_calls
        name: str | None = None
        buffered: list[str] | None = None
        has_all_arguments = True
        separator = ","
        while separator == ",":
            key = yield from _read_key(source)
            if key in NAMES and not name:
                name = yield from read_short_string(source)
                is_fine = bool(name)
                if name and buffered is not None:
                    sink.call(name)
                    sink.arguments("".join(buffered))
                    source.mark()
            elif key in ARGUMENTS and not name and buffered is None:
                buffered = []
                limit = MAX_BUFFERED_CHARS
                is_fine = yield from read_arguments(source, buffered.append, limit=limit)
            elif key in ARGUMENTS and name and sink.num_calls == num_calls:
                is_fine = not self.needs_arguments or not schemas or name in schemas
                if is_fine:
                    sink.call(name)
                    source.mark()
                    has_all_arguments = is_fine = yield from read_arguments(source, sink.arguments)
                    source.mark()
            else:
                is_fine = key in ENVELOPE and (yield from read_short_string(source)) is not None
            separator = (yield from source.accept(",", "}")) if is_fine else ""
        if separator and name and sink.num_calls == num_calls and not self.needs_arguments:
            sink.call(name)
        if sink.num_calls == num_calls:
            return False
        if has_all_arguments:
            sink.end_call()
        return bool(separator)


def _read_key(source: Source) -> Reading[str | None]:
    key = yield from read_short_string(source)
    return key if key and (yield from source.accept(":")) else None
