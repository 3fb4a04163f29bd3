"""Settings of the HTTP server."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxserve.chat import AUTO, NONE
from jaxserve.chat.reasoning_parsers import reasoning_format
from jaxserve.chat.tool_parsers import tool_format
from jaxserve.errors import ConfigError

MIB = 2**20
ROOT_PATH = r"(/[^/?#\s]+)+"
ALLOWED_HOST = re.compile(r"\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|[0-9A-Fa-f:]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where to listen, whom to answer, and how long to wait for whom.

    uds: path of a Unix socket to listen on in place of host and port. root_path: prefix of paths
    under which a proxy forwards requests. middleware: ASGI classes or functions as
    `module.name`, innermost last, trusted like code. disable_docs: whether there is no
    /openapi.json and no /docs. tokenizer_info: whether GET /tokenizer_info is served.
    disable_access_log: whether requests are not logged; those to quiet_paths never are.
    api_keys: when there are any, every route but the probes (/api/hello, /health, /live, /ping,
    /ready) and the files of the playground asks for one of them.
    allowed_origins: web origins whose pages may call the server; none by default. allowed_methods,
    allowed_headers, allow_credentials: what those pages may send.
    allowed_hosts: names that requests may have in their Host header, besides addresses and those of
    this machine; see `jaxserve.server.http.hosts`.
    disable_playground: whether / has no page to talk to the model.
    ssl_certfile, ssl_keyfile: serve TLS; ssl_ca_certs, ssl_cert_reqs, ssl_ciphers: as in the ssl
    module, to ask clients for certificates. ssl_refresh: load the files again when they change.
    max_body_bytes: longest request body. max_connections: open at once; on
    further ones probes are answered and other requests refused. max_concurrent_requests:
    answers being made at once, before the engine's own queue; more are refused with 503.
    batch_dir: where files and batches are kept for the next server; without it they go with this
    one. max_batch_bytes, of all files together, and max_batches: that are kept. max_batch_requests:
    of batches, under way at once, at the lowest priority.
    max_stored_responses and max_stored_response_bytes: of /v1/responses, kept for later requests
    while the server runs; then the least recently used go.
    header_timeout_s and body_timeout_s: how long a client may take to send its headers, and may
    pause within a body. min_body_rate: bytes a second at which a body must come, after twice
    body_timeout_s. max_buffered_body_bytes: of all bodies that are received or parsed at once; the
    first 64 KiB of each are not counted. send_timeout_s: how long a client may leave its answer
    unread.
    stream_interval: tokens of a choice per event of a stream, after its first. per_request_metrics:
    whether answers tell how long they took. return_tokens_as_token_ids, force_include_usage,
    chat_template_kwargs: what requests get that do not ask for anything else.
    shutdown_delay_s: how long the server still takes requests after it is told to stop, while
    /ready says that it is not ready. shutdown_timeout_s: how long answers may still take then.

    api_server_count: processes that speak HTTP; limits are those of each. engine_start_timeout_s:
    how long an engine that loads and compiles may go without using the processor, before it is
    taken for dead. engine_hang_timeout_s: how long a step may take before it is, not counting the
    compilations that it waits for; an engine whose process stands still is after a sixth of that.
    api_hang_timeout_s: how long an API process may show no sign
    of life. A process that has ended starts again after restart_delay_s, then twice that, and
    so on; when it has ended more than max_restarts times within restart_window_s, the server ends.

    tool_call_parser and reasoning_parser: names of jaxserve/chat's parsers, `auto` for what the
    model's chat template shows, `none` to leave calls and reasoning in the text. Without
    enable_auto_tool_choice only calls that a request forces are looked for.
    trust_request_chat_template: whether requests may bring a template, which is code.
    strict_fields: whether unknown fields of requests are refused, rather than ignored and reported.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    root_path: str = ""
    middleware: tuple[str, ...] = ()
    disable_docs: bool = False
    tokenizer_info: bool = False
    disable_access_log: bool = False
    quiet_paths: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    allowed_origins: tuple[str, ...] = ()
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False
    allowed_hosts: tuple[str, ...] = ()
    disable_playground: bool = False
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_ca_certs: str | None = None
    ssl_cert_reqs: int = 0
    ssl_ciphers: str | None = None
    ssl_refresh: bool = False
    max_body_bytes: int = 16 * MIB
    max_connections: int = 8192
    batch_dir: str | None = None
    max_batch_bytes: int = 4 * 1024 * MIB
    max_batches: int = 10_000
    max_batch_requests: int = 32
    max_stored_responses: int = 10_000
    max_stored_response_bytes: int = 256 * MIB
    max_concurrent_requests: int = 4096
    stream_interval: int = 1
    per_request_metrics: bool = False
    return_tokens_as_token_ids: bool = False
    force_include_usage: bool = False
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    min_body_rate: int = 8 * 2**10
    max_buffered_body_bytes: int = 256 * MIB
    send_timeout_s: float = 60.0
    keep_alive_timeout_s: float = 75.0
    shutdown_delay_s: float = 0.0
    shutdown_timeout_s: float = 30.0
    api_server_count: int = 1
    engine_start_timeout_s: float = 300.0
    engine_hang_timeout_s: float = 180.0
    api_hang_timeout_s: float = 30.0
    max_restarts: int = 5
    restart_window_s: float = 600.0
    restart_delay_s: float = 1.0
    tool_call_parser: str = AUTO
    reasoning_parser: str = AUTO
    enable_auto_tool_choice: bool = True
    trust_request_chat_template: bool = False
    strict_fields: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be in [0, 65535], got {self.port}")
        if self.tool_call_parser not in {AUTO, NONE}:
            tool_format(self.tool_call_parser)
        if self.reasoning_parser not in {AUTO, NONE}:
            reasoning_format(self.reasoning_parser)
        self._check_network()
        if any(not key for key in self.api_keys):
            raise ConfigError("api_keys must not be empty strings")
        for name in self.allowed_hosts:
            if not ALLOWED_HOST.fullmatch(name):
                raise ConfigError(
                    "allowed_hosts must be names without scheme and port, such as llm.example.com,"
                    f" *.example.com or *, got {name!r}"
                )
        for name in (
            "max_body_bytes",
            "max_connections",
            "min_body_rate",
            "max_buffered_body_bytes",
            "max_concurrent_requests",
            "stream_interval",
            "max_batch_bytes",
            "max_batches",
            "max_batch_requests",
            "max_stored_responses",
            "max_stored_response_bytes",
            "api_server_count",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "header_timeout_s",
            "body_timeout_s",
            "send_timeout_s",
            "keep_alive_timeout_s",
            "engine_start_timeout_s",
            "engine_hang_timeout_s",
            "api_hang_timeout_s",
            "restart_window_s",
        ):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("shutdown_delay_s", "shutdown_timeout_s", "max_restarts", "restart_delay_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")

    def _check_network(self) -> None:
        if self.root_path and not re.fullmatch(ROOT_PATH, self.root_path):
            raise ConfigError(
                f"root_path must begin with / and not end with it, got {self.root_path!r}"
            )
        if self.ssl_cert_reqs not in {0, 1, 2}:
            raise ConfigError(f"ssl_cert_reqs must be 0, 1 or 2, got {self.ssl_cert_reqs}")
        if self.ssl_cert_reqs and not self.ssl_ca_certs:
            raise ConfigError("ssl_cert_reqs needs ssl_ca_certs")
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ConfigError("ssl_certfile and ssl_keyfile must be given together")
