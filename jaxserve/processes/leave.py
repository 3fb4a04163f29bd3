"""Exit a process without waiting for its threads."""

import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn


def leave(status: int) -> NoReturn:
    """Exit with a status, without waiting for other threads.

    Python would wait for a compilation that is no longer needed, up to a minute for a large model,
    and cannot finalize the interpreter while its threads are running. So if there are threads that
    are not daemons, flush the output and exit at once.
    """
    others = set(threading.enumerate()) - {threading.current_thread()}
    if all(thread.daemon for thread in others):
        sys.exit(status)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)
