"""The ASGI application: routes and middleware."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from jaxserve.access.api_key import Scope
from jaxserve.access.key_store import KeyStore
from jaxserve.access.keyring import Authenticator, Authenticators, Keyring
from jaxserve.access.policy import Policy
from jaxserve.config.server import ServerConfig
from jaxserve.observability.metrics import Metrics
from jaxserve.server.admin.docs import get_docs, get_openapi
from jaxserve.server.admin.health import health, live, load, ready
from jaxserve.server.admin.keys import create_key, list_keys, revoke_key, rotate_key
from jaxserve.server.admin.metrics import metrics as get_metrics
from jaxserve.server.admin.models import get_model, list_models
from jaxserve.server.admin.openapi import describe_api
from jaxserve.server.admin.operations import OPERATIONS
from jaxserve.server.admin.version import version
from jaxserve.server.batches.files import (
    delete_file,
    get_file,
    get_file_content,
    list_files,
    upload_file,
)
from jaxserve.server.batches.handler import cancel_batch, create_batch, get_batch, list_batches
from jaxserve.server.batches.lines import BatchLineMiddleware, LineRunner
from jaxserve.server.batches.runner import BatchRunner
from jaxserve.server.batches.trouble import BatchTrouble
from jaxserve.server.chat.conversations import create_chat_completions
from jaxserve.server.chat.handler import create_chat_completion
from jaxserve.server.completions.handler import create_completion
from jaxserve.server.errors import HANDLERS
from jaxserve.server.http.extensions import extension
from jaxserve.server.http.hosts import HostMiddleware
from jaxserve.server.http.load_report import LoadReportMiddleware
from jaxserve.server.http.middleware import (
    OPEN_PATHS,
    PROBED_PATHS,
    AuthorizeMiddleware,
    ObserveMiddleware,
    RootPathMiddleware,
    SurplusMiddleware,
    scoped,
)
from jaxserve.server.http.record import LogSink, MetricsSink, RecordSink
from jaxserve.server.invocations import invoke
from jaxserve.server.messages.handler import count_tokens, create_message
from jaxserve.server.models import ModelRouter, ServedModel
from jaxserve.server.playground.handler import playground_routes
from jaxserve.server.pooling.handler import (
    classify,
    create_embeddings,
    embed_cohere,
    pool,
    rerank,
    score,
)
from jaxserve.server.responses.handler import (
    cancel_response,
    count_input_tokens,
    create_response,
    delete_response,
    get_response,
    list_input_items,
)
from jaxserve.server.state import Scrape, ServerState
from jaxserve.server.tokenize.handler import detokenize, tokenize, tokenizer_info

# Routes by the scopes that they require of a key. Lines of a batch run without further checks, so
# creating one requires both.
INFERENCE_ROUTES = (
    Route("/v1/chat/completions", create_chat_completion, methods=["POST"]),
    Route("/v1/chat/completions/batch", create_chat_completions, methods=["POST"]),
    Route("/v1/completions", create_completion, methods=["POST"]),
    Route("/v1/responses", create_response, methods=["POST"]),
    Route("/v1/responses/input_tokens", count_input_tokens, methods=["POST"]),
    Route("/v1/responses/{response_id}", get_response, methods=["GET"]),
    Route("/v1/responses/{response_id}", delete_response, methods=["DELETE"]),
    Route("/v1/responses/{response_id}/cancel", cancel_response, methods=["POST"]),
    Route("/v1/responses/{response_id}/input_items", list_input_items),
    Route("/v1/messages", create_message, methods=["POST"]),
    Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
    Route("/v1/embeddings", create_embeddings, methods=["POST"]),
    Route("/v2/embed", embed_cohere, methods=["POST"]),
    Route("/pooling", pool, methods=["POST"]),
    *(Route(path, rerank, methods=["POST"]) for path in ("/rerank", "/v1/rerank", "/v2/rerank")),
    *(Route(path, score, methods=["POST"]) for path in ("/score", "/v1/score")),
    Route("/classify", classify, methods=["POST"]),
    Route("/invocations", invoke, methods=["POST"]),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
    Route("/tokenizer_info", tokenizer_info),
)
FILE_ROUTES = (
    Route("/v1/files", upload_file, methods=["POST"]),
    Route("/v1/files", list_files, methods=["GET"]),
    Route("/v1/files/{file_id}", get_file, methods=["GET"]),
    Route("/v1/files/{file_id}", delete_file, methods=["DELETE"]),
    Route("/v1/files/{file_id}/content", get_file_content),
    Route("/v1/batches", list_batches, methods=["GET"]),
    Route("/v1/batches/{batch_id}", get_batch),
    Route("/v1/batches/{batch_id}/cancel", cancel_batch, methods=["POST"]),
)
ADMIN_ROUTES = (
    Route("/v1/admin/keys", create_key, methods=["POST"]),
    Route("/v1/admin/keys", list_keys, methods=["GET"]),
    Route("/v1/admin/keys/{key_id}", revoke_key, methods=["DELETE"]),
    Route("/v1/admin/keys/{key_id}/rotate", rotate_key, methods=["POST"]),
)
# Routes that any key may use, and those that need none (see OPEN_PATHS).
COMMON_ROUTES = (
    Route("/v1/models", list_models),
    Route("/v1/models/{model_id:path}", get_model),
    Route("/openapi.json", get_openapi),
    Route("/docs", get_docs),
    Route("/version", version),
    Route("/health", health),
    Route("/ping", health, methods=["GET", "POST"]),
    Route("/live", live),
    # Claude Code sends a HEAD request to it before anything else.
    Route("/api/hello", live),
    Route("/ready", ready),
)
ROUTES = (
    *scoped([Scope.INFERENCE], *INFERENCE_ROUTES),
    *scoped([Scope.FILES], *FILE_ROUTES),
    *scoped([Scope.FILES, Scope.INFERENCE], Route("/v1/batches", create_batch, methods=["POST"])),
    *scoped([Scope.METRICS], Route("/metrics", get_metrics), Route("/load", load)),
    *scoped([Scope.ADMIN], *ADMIN_ROUTES),
    *COMMON_ROUTES,
)


DOCS_PATHS = frozenset({"/openapi.json", "/docs"})
TOKENIZER_PATHS = frozenset({"/tokenizer_info"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AppHooks:
    """Additions to an application by the program around it.

    policies, scrape: see ServerState. sinks: receive the record of each request, after the metrics
    and the log. report_batches: called with what delays batches, by default to set it in the state.
    """

    policies: Sequence[Policy] = ()
    sinks: Sequence[RecordSink] = ()
    scrape: Scrape | None = None
    report_batches: Callable[[BatchTrouble | None], None] | None = None


NO_HOOKS = AppHooks()


def create_app(
    models: Sequence[ServedModel],
    *,
    metrics: Metrics,
    config: ServerConfig,
    folder: Path,
    num_models: int | None = None,
    hooks: AppHooks = NO_HOOKS,
) -> Starlette:
    """Return the application that serves `models`; the first one is the default.

    The engines of the models are running, and `Server` stops them. folder: see ServerState.
    num_models: number of models that the server will have; those missing are added later to the
    `router` of the state, and requests for them are refused until then.

    The application's `state.lines` answers lines of batches, and `state.batches` runs batches once
    it is started.
    """
    observe = Middleware(
        ObserveMiddleware,
        sinks=[
            MetricsSink(metrics),
            LogSink(
                access_log=not config.disable_access_log,
                quiet_paths=PROBED_PATHS | {*config.quiet_paths},
            ),
            *hooks.sinks,
        ],
        strict_fields=config.strict_fields,
    )
    page = [] if config.disable_playground else playground_routes()
    keyring = Keyring(config.api_keys, names=config.api_key_names)
    keys = None if config.key_store is None else KeyStore(Path(config.key_store))
    middleware = _middleware(
        config,
        observe,
        Authenticators([keyring, *([] if keys is None else [keys])]),
        metrics=metrics,
        page_paths=frozenset(route.path for route in page),
    )
    hidden = (DOCS_PATHS if config.disable_docs else frozenset()) | (
        frozenset() if config.tokenizer_info else TOKENIZER_PATHS
    )
    routes = [route for route in ROUTES if route.path not in hidden]
    app = Starlette(routes=[*routes, *page], middleware=middleware, exception_handlers=HANDLERS)
    # Lines of batches use the same endpoints. Their key was checked when the batch was created.
    inner = Starlette(
        routes=ROUTES,
        middleware=[observe, Middleware(BatchLineMiddleware)],
        exception_handlers=HANDLERS,
    )
    # A redirect would lead to the host in the client's Host header.
    app.router.redirect_slashes = inner.router.redirect_slashes = False
    state = ServerState(
        ModelRouter(models, num_expected=num_models or max(1, len(models))),
        metrics=metrics,
        config=config,
        folder=folder,
        keys=keys,
        policies=hooks.policies,
        scrape=hooks.scrape,
    )
    state.batches.rename_tenants(keyring.renamed_tenants)
    app.state.server = inner.state.server = state
    # Created on first use.
    app.state.openapi = cache(partial(describe_api, routes, OPERATIONS, root_path=config.root_path))
    app.state.lines = LineRunner(inner)
    app.state.batches = BatchRunner(
        state.batches,
        app.state.lines,
        concurrency=config.max_batch_requests,
        metrics=metrics,
        report=hooks.report_batches or state.note_batches,
    )
    return app


def _middleware(
    config: ServerConfig,
    observe: Middleware,
    authenticator: Authenticator,
    *,
    metrics: Metrics,
    page_paths: frozenset[str],
) -> list[Middleware]:
    """Return the middleware of a server, the outermost first.

    page_paths: paths of the playground, which is served without a key and asks the user for one.
    """
    middleware = [
        *([Middleware(RootPathMiddleware, root_path=config.root_path)] if config.root_path else []),
        observe,
        Middleware(SurplusMiddleware),
        Middleware(HostMiddleware, config=config, metrics=metrics),
    ]
    if config.allowed_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=config.allowed_origins,
                allow_methods=config.allowed_methods,
                allow_headers=config.allowed_headers,
                allow_credentials=config.allow_credentials,
            )
        )
    if config.requires_keys:
        middleware.append(
            Middleware(
                AuthorizeMiddleware,
                authenticator=authenticator,
                open_paths=OPEN_PATHS | page_paths,
            )
        )
    middleware.append(Middleware(LoadReportMiddleware))
    return middleware + [extension(place) for place in config.middleware]
