"""How a process of ours ends: at once."""

import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn


def leave(status: int) -> NoReturn:
    """End the process with a status, whatever its other threads are at.

    Python would wait for a program that is being compiled, which nobody is going to run: a minute
    for a large model. Nor can it clear up beside one, whose threads use what would be cleared. So
    then the process ends as it is; only what it has said is still written.
    """
    others = set(threading.enumerate()) - {threading.current_thread()}
    if all(thread.daemon for thread in others):
        sys.exit(status)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)
