"""Names of ignored fields for the log and the metrics: each logged once, a bounded set of them."""

from jaxserve.observability.logging import get_logger

log = get_logger(__name__)

# Unknown names that are told apart; known hints are a closed set and come on top.
MAX_UNKNOWN = 100
OTHER = "other"


class IgnoredLog:
    """Logs each name of an ignored field once in the life of a process."""

    def __init__(self) -> None:
        self._hints: set[str] = set()
        self._unknown: set[str] = set()

    def note(self, name: str, *, is_hint: bool) -> str:
        """Return the name to count a field by, after logging it if it is new."""
        known = self._hints if is_hint else self._unknown
        if name in known:
            return name
        if not is_hint and len(known) == MAX_UNKNOWN:
            return OTHER
        known.add(name)
        if is_hint:
            log.info("a field of requests has no effect", field=name)
        else:
            log.warning("an unknown field of requests is ignored", field=name)
        if not is_hint and len(known) == MAX_UNKNOWN:
            log.warning("further unknown fields are not logged", limit=MAX_UNKNOWN)
        return name
