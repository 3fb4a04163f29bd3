"""A process that compiles the grammars of requests, to check them before they are served.

The size of a compiled grammar cannot be predicted from its text: `a{1000000}` takes 90 MB. So the
server first compiles each new grammar in a small process of its own. There its memory can be
measured, and a slow grammar or a crash affects no other request. The process ends with its parent.
"""

import contextlib
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from select import select
from typing import IO

import msgspec
from tokenizers import Tokenizer, models

from jaxserve.api.structured_outputs import StructuredOutputsParams, refusal
from jaxserve.errors import InvalidRequestError, OverloadedError
from jaxserve.grammar.compiler import GrammarChecker, GrammarCompiler
from jaxserve.grammar.heap import heap_bytes
from jaxserve.grammar.vocabulary import Vocabulary

# Largest compiled grammar. 25,000 choices take 10 MB, a schema of 1500 properties 4 MB.
MAX_GRAMMAR_BYTES = 2**24
# Memory that compiling may use.
MAX_SANDBOX_BYTES = 2**29
MAX_CPU_S = 2.0
# Requests that are running take precedence.
NICENESS = 10
# Above MAX_CPU_S, because a busy machine runs other processes too.
MAX_WALL_S = 60.0
TOO_SLOW = "takes too much time to compile"
TOO_LARGE = f"takes more than {MAX_SANDBOX_BYTES // 2**20} MiB to compile"
# Error by the signal that ended the process: its CPU timer, or a failed allocation.
COMPLAINTS: Mapping[int, str] = {
    signal.SIGPROF: TOO_SLOW,
    signal.SIGABRT: TOO_LARGE,
    signal.SIGSEGV: TOO_LARGE,
}

_SIZE = struct.Struct("<I")


class Start(msgspec.Struct, frozen=True):
    """First message to the process.

    added_texts: texts of the added tokens. max_cpu_s: CPU time allowed per grammar, in seconds.
    """

    added_texts: list[str]
    max_cpu_s: float


class Verdict(msgspec.Struct, frozen=True):
    """Result of compiling a grammar. message: the error; None if the grammar may be served."""

    message: str | None = None
    param: str | None = None


class GrammarSandbox(GrammarChecker):
    """Checks grammars in a separate process, with limits on time and memory. Thread-safe.

    The process starts with the first grammar, and again after it has ended. max_cpu_s: CPU time
    allowed per grammar, in seconds.
    """

    def __init__(self, vocabulary: Vocabulary, *, max_cpu_s: float = MAX_CPU_S) -> None:
        super().__init__(vocabulary)
        self._vocabulary = vocabulary
        self._max_cpu_s = max_cpu_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def judge(self, params: StructuredOutputsParams) -> InvalidRequestError | None:
        """See GrammarChecker. Raises OverloadedError if the process times out or was killed."""
        with self._lock:
            process = self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                _write(process.stdin, msgspec.msgpack.encode(params))
                readable, _, _ = select([process.stdout], [], [], MAX_WALL_S)
                if not readable:
                    process.kill()
                    process.wait()
                    raise OverloadedError("the grammar was not compiled in time", retry_after_s=5.0)
                answer = _read(process.stdout)
            except BrokenPipeError:
                answer = None
            if answer is None:
                complaint = COMPLAINTS.get(-process.wait())
                if complaint is None:
                    raise OverloadedError(
                        "the process that compiles grammars was killed", retry_after_s=1.0
                    )
                return refusal(params.kind, complaint)
        verdict = msgspec.msgpack.decode(answer, type=Verdict)
        if verdict.message is None:
            return None
        return InvalidRequestError(verdict.message, param=verdict.param)

    def _started(self) -> subprocess.Popen[bytes]:
        """Return the running process, started if necessary."""
        if self._process is None or self._process.poll() is not None:
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", "jaxserve.grammar.sandbox"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            weakref.finalize(self, _end, process)
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                start = Start(self._vocabulary.added_texts, self._max_cpu_s)
                _write(process.stdin, msgspec.msgpack.encode(start))
        return self._process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.close()


def _write(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(_SIZE.pack(len(data)) + data)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes | None:
    """Return the next message; None at the end of the stream."""
    head = pipe.read(_SIZE.size)
    if len(head) < _SIZE.size:
        return None
    (size,) = _SIZE.unpack(head)
    data = pipe.read(size)
    return data if len(data) == size else None


def main() -> None:
    """Check grammars from stdin until it closes, and write a verdict on each to stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process ends when its stdin closes
    os.nice(NICENESS)
    data = _read(sys.stdin.buffer)
    if data is None:
        return
    start = msgspec.msgpack.decode(data, type=Start)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_special_tokens(start.added_texts)
    vocabulary = Vocabulary(lambda: tokenizer, vocab_size=0)
    vocabulary.bare()
    _limit_memory()
    while (data := _read(sys.stdin.buffer)) is not None:
        # Compiling cannot be interrupted, so the timer's signal ends the process.
        signal.setitimer(signal.ITIMER_PROF, start.max_cpu_s)
        verdict = _verdict(vocabulary, data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(sys.stdout.buffer, msgspec.msgpack.encode(verdict))


def _limit_memory() -> None:
    """Limit this process to MAX_SANDBOX_BYTES more than it uses now."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        now = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MAX_SANDBOX_BYTES, now + MAX_SANDBOX_BYTES))


def _verdict(vocabulary: Vocabulary, data: bytes) -> Verdict:
    params = msgspec.msgpack.decode(data, type=StructuredOutputsParams)
    before = heap_bytes()
    try:
        # Measured while the grammar is alive, after temporary memory was freed.
        grammar = GrammarCompiler(vocabulary, is_bare=True).compiled(params)
        num_bytes = heap_bytes() - before
        del grammar
        if num_bytes > MAX_GRAMMAR_BYTES:
            raise refusal(
                params.kind,
                f"must compile to at most {MAX_GRAMMAR_BYTES // 2**20} MiB,"
                f" got {num_bytes / 2**20:.0f} MiB",
            )
    except InvalidRequestError as error:
        return Verdict(error.message, error.param)
    except MemoryError:
        too_large = refusal(params.kind, TOO_LARGE)
        return Verdict(too_large.message, too_large.param)
    return Verdict()


if __name__ == "__main__":
    main()
