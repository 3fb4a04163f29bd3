"""Settings of the HTTP server and of the processes around it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxserve.chat import AUTO, NONE, reasoning_parsers, tool_parsers
from jaxserve.config.option import check_options, option
from jaxserve.config.values import SUFFIX_HELP, comma_separated, json_strings
from jaxserve.errors import ConfigError

MIB = 2**20
API_KEY_VARIABLE = "JAXSERVE_API_KEY"
# Of whoever comes from vLLM: a server that did not read it would be open to all.
VLLM_API_KEY_VARIABLE = "VLLM_API_KEY"
ROOT_PATH = r"(/[^/?#\s]+)+"
TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
ALLOWED_HOST = re.compile(r"\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|[0-9A-Fa-f:]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where to listen, whom to answer, and how long to wait for whom.

    Limits are those of each API process. Raises ConfigError for a value that cannot work.
    """

    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(8000, "port to listen on; 0 takes a free one", at_least=0, at_most=65535)
    uds: str | None = option(None, "path of a Unix socket to listen on in place of host and port")
    root_path: str = option(
        "", "prefix of paths under which a proxy forwards requests, such as /llm"
    )
    middleware: tuple[str, ...] = option(
        (), "ASGI classes or functions as module.name, innermost last; trusted code"
    )
    disable_docs: bool = option(
        False, "serve no /openapi.json and no /docs", flag="disable-fastapi-docs"
    )
    tokenizer_info: bool = option(
        False,
        "serve the tokenizer's settings and its chat template at /tokenizer_info",
        flag="enable-tokenizer-info-endpoint",
    )
    disable_access_log: bool = option(
        False, "log no line for each request", flag="disable-uvicorn-access-log"
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
        False, "report in answers how long they took", flag="enable-per-request-metrics"
    )
    return_tokens_as_token_ids: bool = option(
        False, "write tokens as `token_id:ID` in log-probabilities, for requests that do not say"
    )
    force_include_usage: bool = option(
        False,
        "tell the usage in every chunk of every stream, as stream_options does with include_usage"
        " and continuous_usage_stats",
        flag="enable-force-include-usage",
    )
    strict_fields: bool = option(
        False, "refuse requests with unknown fields, rather than ignore and report these"
    )
    chat_template_kwargs: Mapping[str, Any] = option(
        {},
        "chat_template_kwargs, as a JSON object, for requests that do not set them",
        flag="default-chat-template-kwargs",
    )
    api_keys: tuple[str, ...] = option(
        (),
        "keys of which clients must send one, for every route but the probes, /api/hello and the"
        f" playground's files (better: in {API_KEY_VARIABLE} or"
        f" {VLLM_API_KEY_VARIABLE})",
        flag="api-key",
        is_secret=True,
    )
    api_key_names: tuple[str, ...] = option(
        (),
        "tenants of the keys of --api-key, in order: keys of one tenant share its stored files,"
        " batches, responses and cached prefixes, so that a key can be replaced (default: each key"
        " is a tenant of its own)",
    )
    allowed_origins: tuple[str, ...] = option(
        (),
        "web origins whose pages may call the server; a JSON list is read, too",
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
        "names that clients may call the server by, as in the Host header: llm.example.com,"
        " *.example.com, or * for any (default: any, but on a loopback address without a key only"
        " names of this machine)",
    )
    disable_playground: bool = option(False, "serve no page at / to talk to the model")
    ssl_certfile: str | None = option(None, "TLS certificate")
    ssl_keyfile: str | None = option(None, "TLS key")
    ssl_ca_certs: str | None = option(
        None, "certificates of the authorities that sign clients' certificates"
    )
    ssl_cert_reqs: int = option(
        0,
        "whether clients need certificates: 0 no, 1 may have one, 2 yes",
        at_least=0,
        at_most=2,
    )
    ssl_ciphers: str | None = option(None, "TLS ciphers, as OpenSSL lists them")
    ssl_refresh: bool = option(
        False, "load the TLS files again when they change", flag="enable-ssl-refresh"
    )
    tool_call_parser: str = option(
        AUTO,
        "the parser that finds tool calls in answers: auto (by the chat template), none, "
        + ", ".join(tool_parsers.names()),
    )
    reasoning_parser: str = option(
        AUTO,
        "the parser that finds reasoning in answers: auto, none, "
        + ", ".join(reasoning_parsers.names()),
    )
    enable_auto_tool_choice: bool = option(True, "look for tool calls that no request has forced")
    trust_request_chat_template: bool = option(
        False, "let requests bring chat templates, which can take much time and memory"
    )
    max_concurrent_requests: int = option(
        4096, "answers made at once; further requests are refused with 503", at_least=1
    )
    max_connections: int = option(
        8192,
        "open connections of each API process; on further ones only probes are answered",
        at_least=1,
    )
    max_body_bytes: int = option(16 * MIB, "longest request body", flag="", at_least=1)
    min_body_rate: int = option(
        8 * 2**10,
        "bytes per second at which request bodies must come, after the first minute" + SUFFIX_HELP,
        at_least=1,
    )
    max_buffered_body_bytes: int = option(
        256 * MIB,
        "size of all request bodies that an API process receives at once, without the first 64 KiB"
        " of each" + SUFFIX_HELP,
        at_least=1,
    )
    header_timeout_s: float = option(
        10.0, "seconds in which a client must send its headers", flag="", above=0
    )
    body_timeout_s: float = option(
        30.0, "seconds that a client may pause within a body", flag="", above=0
    )
    send_timeout_s: float = option(
        60.0, "seconds that a client may leave its answer unread", flag="", above=0
    )
    keep_alive_timeout_s: float = option(
        75.0, "seconds that an idle connection stays open", flag="", above=0
    )
    batch_dir: str | None = option(
        None, "folder for the files and batches of /v1/files and /v1/batches, to survive a restart"
    )
    max_batch_bytes: int = option(
        4 * 1024 * MIB, "size of all files of batches together" + SUFFIX_HELP, at_least=1
    )
    max_batches: int = option(10_000, "batches that are kept", flag="", at_least=1)
    max_batch_requests: int = option(
        32, "requests of batches that run at once, at the lowest priority", at_least=1
    )
    max_stored_responses: int = option(
        10_000,
        "answers of /v1/responses that are kept to continue from; the least recently used go first",
        at_least=1,
    )
    max_stored_response_bytes: int = option(
        256 * MIB, "size of those answers together" + SUFFIX_HELP, at_least=1
    )
    shutdown_delay_s: float = option(
        0.0,
        "seconds that a stopping server still takes requests while /ready answers 503, until"
        " load balancers have noticed",
        flag="shutdown-delay",
        at_least=0,
    )
    shutdown_timeout_s: float = option(
        30.0,
        "seconds that answers may still take after --shutdown-delay",
        flag="shutdown-timeout",
        at_least=0,
    )
    api_server_count: int = option(1, "processes that speak HTTP, beside the engine's", at_least=1)
    engine_start_timeout_s: float = option(
        300.0,
        "seconds that a loading engine may go without using the processor, as when a disk or the"
        " network hangs",
        flag="engine-start-timeout",
        above=0,
    )
    engine_hang_timeout_s: float = option(
        180.0,
        "seconds, not counting compilations, after which an engine whose step does not end is"
        " replaced; a process that stands still is replaced after a sixth of it",
        flag="engine-hang-timeout",
        above=0,
    )
    api_hang_timeout_s: float = option(
        30.0,
        "seconds after which an API process without a sign of life is replaced",
        flag="api-hang-timeout",
        above=0,
    )
    max_restarts: int = option(
        5,
        "times that processes of one kind may die within --restart-window before the server ends",
        at_least=0,
    )
    restart_window_s: float = option(
        600.0, "seconds in which deaths are counted", flag="restart-window", above=0
    )
    restart_delay_s: float = option(
        1.0,
        "seconds until a dead process starts again, doubled with each further death",
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
                f"api_key_names must name the tenant of each of the {len(self.api_keys)} keys, got"
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
                    "allowed_hosts must be names without scheme and port, such as llm.example.com,"
                    f" *.example.com or *, got {name!r}"
                )

    def _check_network(self) -> None:
        if self.root_path and not re.fullmatch(ROOT_PATH, self.root_path):
            raise ConfigError(
                f"root_path must begin with / and not end with it, got {self.root_path!r}"
            )
        if self.ssl_cert_reqs and not self.ssl_ca_certs:
            raise ConfigError("ssl_cert_reqs needs ssl_ca_certs")
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ConfigError("ssl_certfile and ssl_keyfile must be given together")
