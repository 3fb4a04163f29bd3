"""Log each ignored field once, and bound the set of names in the metrics."""

from jaxserve.observability.logging import get_logger

log = get_logger(__name__)

# Maximum number of distinct unknown names; known hints are a closed set and not counted.
MAX_UNKNOWN = 100
OTHER = "other"


class IgnoredLog:
    """Logs each ignored field once per process."""

    def __init__(self) -> None:
        self._hints: set[str] = set()
        self._unknown: set[str] = set()

    def note(self, name: str, *, is_hint: bool) -> str:
        """Log a field if it is new, and return the name to count it by."""
        known = self._hints if is_hint else self._unknown
        if name in known:
            return name
        if not is_hint and len(known) == MAX_UNKNOWN:
            return OTHER
        known.add(name)
        if is_hint:
            log.info("request field has no effect", field=name)
        else:
            log.warning("ignored unknown request field", field=name)
        if not is_hint and len(known) == MAX_UNKNOWN:
            log.warning("further unknown request fields are not logged", limit=MAX_UNKNOWN)
        return name
