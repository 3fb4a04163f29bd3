"""Accept connections on a socket shared by several processes."""

import asyncio
import errno
import resource
import socket
import ssl
import time
from collections.abc import Callable
from typing import NamedTuple

from jaxserve.observability.logging import get_logger
from jaxserve.observability.metrics import Metrics
from jaxserve.server.transport.connections import MAX_SURPLUS, Connections

log = get_logger(__name__)

# Number of connections accepted at once, before reading from them and giving other processes a
# turn. MAX_SURPLUS must be several times larger, or a flood evicts probes before they are read.
MAX_ACCEPTED = 8
# Delay after running out of file descriptors or memory.
RETRY_S = 0.1
LOG_INTERVAL_S = 60.0
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# File descriptors reserved for files, databases, pipes, and connections being opened or closed.
OWN_FILES = 96
MIN_CONNECTIONS = 16


class Tls(NamedTuple):
    """Encryption of connections. handshake_timeout_s: seconds a client has for its handshake."""

    context: ssl.SSLContext
    handshake_timeout_s: float


class Acceptor:
    """Accepts connections from a listening socket while it is open.

    Unlike asyncio's servers, it can start later than it is created, accepts few connections at
    once, and logs a single line when file descriptors run out. protocol: creates the protocol of a
    connection. num_open: returns the number of open connections.
    """

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        *,
        connections: Connections,
        metrics: Metrics,
        backlog: int,
        tls: Tls | None,
        num_open: Callable[[], int],
    ) -> None:
        self._listener = listener
        self._protocol = protocol
        self._connections = connections
        self._metrics = metrics
        self._backlog = backlog
        self._tls = tls
        self._num_open = num_open
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._is_open = False
        self._logged_s: float | None = None

    def open(self) -> None:
        """Start accepting. Does nothing if it has started."""
        if not self._is_open:
            self._is_open = True
            self._listener.setblocking(False)
            self._listener.listen(self._backlog)
            self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Stop accepting, and close this process's copy of the socket."""
        if self._is_open:
            self._is_open = False
            if self._retry is not None:
                self._retry.cancel()
            self._loop.remove_reader(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        for _ in range(MAX_ACCEPTED):
            crowded_s = self._connections.crowded_s(self._num_open() + len(self._opening))
            if crowded_s:
                self._rest(crowded_s)
                return
            try:
                client, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    raise
                self._pause(error)
                return
            client.setblocking(False)
            if len(self._opening) >= self._connections.hard_limit:
                # Too many clients have not finished their TLS handshake.
                client.close()
                self._metrics.observe_refusal("connections")
                continue
            task = self._loop.create_task(self._connect(client))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _connect(self, client: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._protocol,
                client,
                ssl=None if self._tls is None else self._tls.context,
                ssl_handshake_timeout=None if self._tls is None else self._tls.handshake_timeout_s,
            )
        except OSError as error:  # includes failed and late handshakes
            log.debug("connection failed", reason=str(error))
            client.close()

    def _pause(self, error: OSError) -> None:
        """Close idle connections, and pause until file descriptors are available."""
        self._metrics.observe_refusal("open_files")
        now_s = time.monotonic()
        if self._logged_s is None or now_s - self._logged_s > LOG_INTERVAL_S:
            self._logged_s = now_s
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            log.warning(
                "cannot accept connections: too many open files (raise ulimit -n, or lower"
                " --max-connections)",
                reason=error.strerror,
                limit=limit,
            )
        for _ in range(MAX_ACCEPTED):
            if not self._connections.make_room():
                break
        self._rest(RETRY_S)

    def _rest(self, delay_s: float) -> None:
        """Leave new connections in the socket's queue for a while."""
        self._loop.remove_reader(self._listener)
        self._retry = self._loop.call_later(delay_s, self._resume)

    def _resume(self) -> None:
        if self._is_open:
            self._loop.add_reader(self._listener, self._accept)


def affordable_connections(max_connections: int) -> Connections:
    """Return the connection limits that fit the limit on open files, at most `max_connections`.

    The soft limit on open files is raised as needed, up to the hard limit.
    """
    needed = max_connections + MAX_SURPLUS + OWN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return Connections(max_connections)
    rest = max(soft - OWN_FILES, 2 * MIN_CONNECTIONS)
    surplus = min(MAX_SURPLUS, rest // 2)
    limit = min(max_connections, rest - surplus)
    log.warning(
        "the limit of open files is too low for --max-connections: raise ulimit -n",
        limit=soft,
        needed=needed,
        max_connections=limit,
    )
    return Connections(limit, surplus=surplus)
