"""Load programs from a folder of executables, or compile them."""

import logging
import threading
import time
from collections.abc import Callable

import jax

from jaxserve.execution.compilation import CompilationCounter
from jaxserve.execution.executables import ExecutableFolder
from jaxserve.execution.programs import Program, ProgramSet, name_of
from jaxserve.models import Params
from jaxserve.observability.startup import MadeProgram, Startup

logger = logging.getLogger(__name__)


class ProgramSources:
    """Loads or compiles programs; safe to call from several threads.

    params: abstract or concrete parameters. executables: a folder whose key matches this engine.
    """

    def __init__(
        self,
        programs: ProgramSet,
        params: Params,
        *,
        mesh: jax.sharding.Mesh,
        compilations: CompilationCounter,
        startup: Startup,
        executables: ExecutableFolder | None = None,
        report: Callable[[str], None] = logger.info,
    ) -> None:
        self._programs = programs
        self._params = params
        self._mesh = mesh
        self._compilations = compilations
        self._startup = startup
        self._executables = executables
        self._report = report
        self._lock = threading.Lock()

    def make(self, program: Program) -> jax.stages.Compiled:
        """Return a program that is ready to run; raises ConfigError and JAX's own errors."""
        start_s = time.perf_counter()
        compiled, origin = self._load(program), "executables"
        if compiled is None:
            with self._compilations.planned() as planned:
                compiled = self._programs.compile(self._params, program)
            origin = "cache" if planned.is_from_cache else "compiled"
        seconds = time.perf_counter() - start_s
        made = MadeProgram(name=name_of(program), seconds=seconds, origin=origin)
        logger.debug("program %s: %s in %.2f s", made.name, made.origin, made.seconds)
        self._startup.made(made)
        return compiled

    def make_unplanned(self, program: Program) -> jax.stages.Compiled:
        """Compile a program while a request waits, and count it as unplanned."""
        compiled = self._load(program)
        return self._programs.compile(self._params, program) if compiled is None else compiled

    def _load(self, program: Program) -> jax.stages.Compiled | None:
        folder = self._executables
        if folder is None:
            return None
        try:
            return folder.load(program, self._mesh)
        except jax.errors.JaxRuntimeError as error:
            reason = str(error).partition("\n")[0]
            with self._lock:
                if self._executables is not None:
                    self._report(f"cannot load the programs in {folder.path}: {reason}")
                self._executables = None  # other files would fail for the same reason
            return None
