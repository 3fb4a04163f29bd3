"""Clients that load a server in the background."""

import asyncio
from abc import ABC, abstractmethod
from typing import Self


class BackgroundClients(ABC):
    """Streams without end and a probe, for as long as the context lasts."""

    def __init__(self, url: str, *, num_streams: int) -> None:
        self._url = url
        self._num_streams = num_streams
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        coroutines = [self._stream(number) for number in range(self._num_streams)]
        self._tasks = [asyncio.create_task(each) for each in (*coroutines, self._probe())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @abstractmethod
    async def _stream(self, number: int) -> None:
        """Read one answer after the other."""

    @abstractmethod
    async def _probe(self) -> None:
        """Ask the server whether it is well, again and again."""
