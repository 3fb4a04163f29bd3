"""Threads for work that is too long for the event loop, apart by kind.

Each kind of work has threads of its own, so that cheap work never waits for slow work: a chat to be
rendered does not queue behind grammars that compile, files that are written, or large bodies.
"""

from collections.abc import Callable

import anyio
import anyio.to_thread

type Lane = anyio.CapacityLimiter


class Lanes:
    """How many threads of each kind there are.

    prompts: render, tokenize and check. bodies: parse bodies that are large, one at a time, as
    parsing holds the GIL. grammars: compile. storage: files, batches and stored responses.
    """

    def __init__(self) -> None:
        # The tokenizer releases the GIL, templates do not.
        self.prompts: Lane = anyio.CapacityLimiter(4)
        self.bodies: Lane = anyio.CapacityLimiter(1)
        self.grammars: Lane = anyio.CapacityLimiter(2)
        self.storage: Lane = anyio.CapacityLimiter(4)


async def run_in[T](lane: Lane, work: Callable[[], T]) -> T:
    """Run `work` on a thread of a lane; a caller that is cancelled does not wait for its end."""
    return await anyio.to_thread.run_sync(work, limiter=lane, abandon_on_cancel=True)
