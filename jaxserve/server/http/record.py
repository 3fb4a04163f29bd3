"""Records of finished requests, and their sinks: the log and the metrics."""

from dataclasses import dataclass, field
from typing import Protocol

from starlette.types import Scope

from jaxserve.access.principal import ANONYMOUS, Principal
from jaxserve.frontend.schema.ignored import IgnoredFields
from jaxserve.observability.ignored_fields import IgnoredLog
from jaxserve.observability.logging import get_logger
from jaxserve.observability.metrics import Metrics

log = get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """One HTTP request: its principal, its handler, and its usage.

    Endpoints fill in the fields. handler: path of the route. batch: id of the batch that contains
    the request. ignored: fields of the body that had no effect.
    """

    request_id: str
    method: str
    handler: str = "unmatched"
    status: int = 0
    seconds: float = 0.0
    principal: Principal = ANONYMOUS
    ignored: IgnoredFields = field(default_factory=IgnoredFields)
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token_s: float | None = None
    finish_reason: str | None = None
    error: str | None = None
    batch: str | None = None


class RecordSink(Protocol):
    """Receiver of request records."""

    def write(self, record: RequestRecord) -> None:
        """Process the record of a finished request. Must not block or raise."""
        ...


class LogSink(RecordSink):
    """Logs each request in one line.

    access_log: whether to log at level info instead of debug. quiet_paths: paths whose successful
    requests are always logged at debug.
    """

    def __init__(self, *, access_log: bool, quiet_paths: frozenset[str]) -> None:
        self._access_log = access_log
        self._quiet_paths = quiet_paths

    def write(self, record: RequestRecord) -> None:
        """See RecordSink."""
        # Probes arrive about every second and would fill the log.
        is_quiet = record.handler in self._quiet_paths and record.status < 400
        known = {
            "request_id": record.request_id,
            "tenant": record.principal.tenant or None,
            "principal": record.principal.name or None,
            "model": record.model,
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
            "first_token_s": record.first_token_s,
            "finish_reason": record.finish_reason,
            "error": record.error,
            "batch": record.batch,
        }
        write = log.info if self._access_log and not is_quiet else log.debug
        write(
            "request",
            method=record.method,
            path=record.handler,
            status=record.status,
            seconds=record.seconds,
            **{name: value for name, value in known.items() if value is not None},
        )


class MetricsSink(RecordSink):
    """Counts requests, and their fields without effect."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._ignored_log = IgnoredLog()

    def write(self, record: RequestRecord) -> None:
        """See RecordSink."""
        self._metrics.observe_http(record.method, record.handler, record.status)
        for name, is_hint in record.ignored.names.items():
            label = self._ignored_log.note(name, is_hint=is_hint)
            self._metrics.observe_ignored_field(label)


def request_record(scope: Scope) -> RequestRecord:
    """Return the record of the current request."""
    record: RequestRecord = scope["state"]["record"]
    return record


def tenant_of(scope: Scope) -> str:
    """Return the tenant whose stored objects the current request may access."""
    return request_record(scope).principal.tenant
