"""Thread pools for work that would block the event loop.

Each kind of work has its own threads, so that fast work does not queue behind slow work, such as
rendering a chat behind compiling grammars, writing files or parsing large bodies.
"""

from collections.abc import Callable

import anyio
import anyio.to_thread

type Lane = anyio.CapacityLimiter


class Lanes:
    """Limits on the threads for each kind of work.

    prompts: rendering, tokenizing and validating. bodies: parsing large bodies, one at a time
    because parsing holds the GIL. grammars: compiling. storage: files, batches and stored
    responses.
    """

    def __init__(self) -> None:
        # The tokenizer releases the GIL; templates do not.
        self.prompts: Lane = anyio.CapacityLimiter(4)
        self.bodies: Lane = anyio.CapacityLimiter(1)
        self.grammars: Lane = anyio.CapacityLimiter(2)
        self.storage: Lane = anyio.CapacityLimiter(4)


async def run_in[T](lane: Lane, work: Callable[[], T]) -> T:
    """Run `work` on a thread of a lane. A cancelled caller does not wait for the thread."""
    return await anyio.to_thread.run_sync(work, limiter=lane, abandon_on_cancel=True)
