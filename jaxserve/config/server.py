"""Settings of the HTTP server and of the processes around it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxserve.access.principal import TENANT
from jaxserve.chat import AUTO, CONTENT_FORMATS, NONE, reasoning_parsers, tool_parsers
from jaxserve.config.option import check_options, option
from jaxserve.config.values import SUFFIX_HELP, comma_separated, json_strings
from jaxserve.errors import ConfigError

MIB = 2**20
API_KEY_VARIABLE = "JAXSERVE_API_KEY"
# Read for users of vLLM, whose servers would otherwise run without a key.
VLLM_API_KEY_VARIABLE = "VLLM_API_KEY"
ROOT_PATH = r"(/[^/?#\s]+)+"
ALLOWED_HOST = re.compile(r"\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|[0-9A-Fa-f:]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Network, access, limits and timeouts of a server.

    Limits apply to each API process. Raises ConfigError for an invalid value.
    """

    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(8000, "port to listen on; 0 selects a free one", at_least=0, at_most=65535)
    uds: str | None = option(None, "path of a Unix socket to listen on instead of host and port")
    root_path: str = option("", "path prefix that a proxy adds to requests, such as /llm")
    middleware: tuple[str, ...] = option(
        (), "ASGI middleware classes or functions as module.name, innermost last; trusted code"
    )
    disable_docs: bool = option(
        False, "do not serve /openapi.json and /docs", flag="disable-fastapi-docs"
    )
    tokenizer_info: bool = option(
        False,
        "serve the tokenizer's settings and its chat template at /tokenizer_info",
        flag="enable-tokenizer-info-endpoint",
    )
    disable_access_log: bool = option(
        False, "do not log requests", flag="disable-uvicorn-access-log"
    )
    quiet_paths: tuple[str, ...] = option(
        (),
        "comma-separated paths whose requests are not logged, such as /v1/models",
        flag="disable-access-log-for-endpoints",
        parse=comma_separated,
        many=False,
    )
    stream_interval: int = option(
        1, "tokens of an answer per event of its stream, after the first", at_least=1
    )
    per_request_metrics: bool = option(
        False, "report timings in answers", flag="enable-per-request-metrics"
    )
    return_tokens_as_token_ids: bool = option(
        False, "write tokens as `token_id:ID` in log-probabilities, unless a request sets it"
    )
    force_include_usage: bool = option(
        False,
        "report the usage in every chunk of every stream, as with include_usage and"
        " continuous_usage_stats in stream_options",
        flag="enable-force-include-usage",
    )
    strict_fields: bool = option(
        False, "refuse requests with unknown fields instead of ignoring and reporting the fields"
    )
    chat_template_kwargs: Mapping[str, Any] = option(
        {},
        "default chat_template_kwargs of requests, as a JSON object",
        flag="default-chat-template-kwargs",
    )
    chat_template_content_format: str = option(
        AUTO,
        "form in which the model's chat template gets the content of messages: string, openai (a"
        " list of parts), or the one that it reads (auto)",
        choices=CONTENT_FORMATS,
    )
    api_keys: tuple[str, ...] = option(
        (),
        "accepted API keys; required for every route except probes, /api/hello and the playground's"
        f" files (safer: set {API_KEY_VARIABLE} or {VLLM_API_KEY_VARIABLE})",
        flag="api-key",
        is_secret=True,
    )
    api_key_names: tuple[str, ...] = option(
        (),
        "tenants of the keys of --api-key, in order; keys of one tenant share stored files,"
        " batches, responses and cached prefixes, so a key can be rotated (default: one tenant per"
        " key)",
    )
    key_store: str | None = option(
        None,
        "database of the keys that `jaxserve keys` issues, revokes and rotates; once it is set,"
        " every route that asks for a key does, even if the database has none (see docs/access.md)",
    )
    allowed_origins: tuple[str, ...] = option(
        (),
        "web origins whose pages may call the server; also as a JSON list",
        parse=json_strings,
    )
    allowed_methods: tuple[str, ...] = option(
        ("*",), "methods that those pages may use", parse=json_strings
    )
    allowed_headers: tuple[str, ...] = option(
        ("*",), "headers that those pages may send", parse=json_strings
    )
    allow_credentials: bool = option(False, "let those pages send cookies and credentials")
    allowed_hosts: tuple[str, ...] = option(
        (),
        "accepted names in the Host header: llm.example.com, *.example.com, or * for any (default:"
        " any; on a loopback address without a key only names of this machine)",
    )
    disable_playground: bool = option(False, "do not serve the playground at /")
    ssl_certfile: str | None = option(None, "TLS certificate")
    ssl_keyfile: str | None = option(None, "TLS key")
    ssl_ca_certs: str | None = option(None, "CA certificates for client certificates")
    ssl_cert_reqs: int = option(
        0,
        "client certificates: 0 not requested, 1 optional, 2 required",
        at_least=0,
        at_most=2,
    )
    ssl_ciphers: str | None = option(None, "TLS ciphers, as an OpenSSL cipher list")
    ssl_refresh: bool = option(
        False, "reload the TLS files when they change", flag="enable-ssl-refresh"
    )
    tool_call_parser: str = option(
        AUTO,
        "parser of tool calls: auto (by the chat template), none, "
        + ", ".join(tool_parsers.names()),
    )
    reasoning_parser: str = option(
        AUTO,
        "parser of reasoning: auto (by the chat template), none, "
        + ", ".join(reasoning_parsers.names()),
    )
    enable_auto_tool_choice: bool = option(True, "parse tool calls with tool_choice auto")
    trust_request_chat_template: bool = option(
        False, "accept chat templates in requests, which can need much time and memory"
    )
    max_concurrent_requests: int = option(
        4096, "maximum number of concurrent requests; others are refused with 503", at_least=1
    )
    max_connections: int = option(
        8192,
        "maximum number of connections per API process; beyond it only probes are answered",
        at_least=1,
    )
    max_body_bytes: int = option(
        16 * MIB, "maximum size of a request body in bytes", flag="", at_least=1
    )
    min_body_rate: int = option(
        8 * 2**10,
        "minimum rate of request bodies in bytes per second, after the first minute" + SUFFIX_HELP,
        at_least=1,
    )
    max_buffered_body_bytes: int = option(
        256 * MIB,
        "maximum bytes of all request bodies that an API process receives at once, excluding the"
        " first 64 KiB of each" + SUFFIX_HELP,
        at_least=1,
    )
    header_timeout_s: float = option(
        10.0, "timeout in seconds for a request's headers", flag="", above=0
    )
    body_timeout_s: float = option(
        30.0, "timeout in seconds between parts of a body", flag="", above=0
    )
    send_timeout_s: float = option(
        60.0, "timeout in seconds for a client to read its answer", flag="", above=0
    )
    keep_alive_timeout_s: float = option(
        75.0, "timeout in seconds of idle connections", flag="", above=0
    )
    batch_dir: str | None = option(
        None, "folder for /v1/files and /v1/batches, so that they survive a restart"
    )
    max_batch_bytes: int = option(
        4 * 1024 * MIB, "maximum bytes of all batch files together" + SUFFIX_HELP, at_least=1
    )
    max_batches: int = option(10_000, "maximum number of stored batches", flag="", at_least=1)
    max_batch_requests: int = option(
        32, "maximum number of batch requests that run at once, at the lowest priority", at_least=1
    )
    max_stored_responses: int = option(
        10_000,
        "maximum number of stored responses of /v1/responses; the least recently used are removed",
        at_least=1,
    )
    max_stored_response_bytes: int = option(
        256 * MIB, "maximum bytes of all stored responses together" + SUFFIX_HELP, at_least=1
    )
    shutdown_delay_s: float = option(
        0.0,
        "seconds during which a stopping server still accepts requests while /ready answers 503, so"
        " that load balancers can react",
        flag="shutdown-delay",
        at_least=0,
    )
    shutdown_timeout_s: float = option(
        30.0,
        "seconds for requests in flight to finish after --shutdown-delay",
        flag="shutdown-timeout",
        at_least=0,
    )
    api_server_count: int = option(
        1, "number of API processes, which handle HTTP", aliases=("-asc",), at_least=1
    )
    engine_start_timeout_s: float = option(
        300.0,
        "seconds without CPU use after which a loading engine is replaced, as when a disk or"
        " network hangs",
        flag="engine-start-timeout",
        above=0,
    )
    engine_hang_timeout_s: float = option(
        180.0,
        "seconds, excluding compilation, after which an engine with an unfinished step is replaced;"
        " a stopped process is replaced after a sixth of it",
        flag="engine-hang-timeout",
        above=0,
    )
    api_hang_timeout_s: float = option(
        30.0,
        "seconds without a heartbeat after which an API process is replaced",
        flag="api-hang-timeout",
        above=0,
    )
    max_restarts: int = option(
        5,
        "maximum number of deaths of one kind of process within --restart-window; then the server"
        " exits",
        at_least=0,
    )
    restart_window_s: float = option(
        600.0, "period in seconds in which deaths are counted", flag="restart-window", above=0
    )
    restart_delay_s: float = option(
        1.0,
        "seconds until a dead process is restarted, doubled with each further death",
        flag="restart-delay",
        at_least=0,
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.tool_call_parser not in {AUTO, NONE}:
            tool_parsers.tool_format(self.tool_call_parser)
        if self.reasoning_parser not in {AUTO, NONE}:
            reasoning_parsers.reasoning_format(self.reasoning_parser)
        self._check_network()
        if any(not key for key in self.api_keys):
            raise ConfigError("api_keys must not be empty strings")
        if self.api_key_names and len(self.api_key_names) != len(self.api_keys):
            raise ConfigError(
                f"api_key_names must have one name for each of the {len(self.api_keys)} keys, got"
                f" {len(self.api_key_names)} names"
            )
        for name in self.api_key_names:
            if not TENANT.fullmatch(name):
                raise ConfigError(
                    f"api_key_names must be up to 64 letters, digits and any of . _ -, got {name!r}"
                )
        for name in self.allowed_hosts:
            if not ALLOWED_HOST.fullmatch(name):
                raise ConfigError(
                    "allowed_hosts must be host names without scheme and port, such as"
                    f" llm.example.com, *.example.com or *, got {name!r}"
                )

    @property
    def requires_keys(self) -> bool:
        """Whether requests need an API key."""
        return bool(self.api_keys) or self.key_store is not None

    def _check_network(self) -> None:
        if self.root_path and not re.fullmatch(ROOT_PATH, self.root_path):
            raise ConfigError(f"root_path must begin but not end with /, got {self.root_path!r}")
        if self.ssl_cert_reqs and not self.ssl_ca_certs:
            raise ConfigError("ssl_cert_reqs needs ssl_ca_certs")
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ConfigError("ssl_certfile and ssl_keyfile must be given together")
