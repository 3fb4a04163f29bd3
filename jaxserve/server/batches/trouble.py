"""What the process that runs batches tells the others."""

from msgspec import Struct


class BatchTrouble(Struct, frozen=True):
    """Why batches do not go on, in words for anybody, and since when in UNIX time."""

    reason: str
    since: int
