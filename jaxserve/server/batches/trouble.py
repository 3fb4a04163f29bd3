"""State that the process which runs batches shares with the others."""

from msgspec import Struct


class BatchTrouble(Struct, frozen=True):
    """Reason for which batches are delayed, for people, and its beginning in UNIX time."""

    reason: str
    since: int
