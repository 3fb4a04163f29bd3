"""Pagination of lists, as in OpenAI's API."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.schema.parsing import show


class Listed(Protocol):
    """An entry of a list."""

    id: str


def page_of(
    entries: Sequence[Listed], query: Mapping[str, str], *, max_limit: int, default: int
) -> dict[str, Any]:
    """Return the fields of a page: up to `limit` entries after the entry with the id `after`.

    Raises InvalidRequestError for a limit out of range, or an unknown id.
    """
    limit = query.get("limit", str(default))
    if not limit.isdecimal() or not limit.isascii() or not 1 <= int(limit[:9]) <= max_limit:
        raise InvalidRequestError(
            f"limit must be in [1, {max_limit}], got {show(limit)}", param="limit"
        )
    after = query.get("after")
    start = 0
    if after is not None:
        ids = [entry.id for entry in entries]
        if after not in ids:
            raise InvalidRequestError(
                f"after must be the id of an entry, got {show(after)}", param="after"
            )
        start = ids.index(after) + 1
    data = list(entries[start : start + int(limit[:9])])
    return {
        "data": data,
        "first_id": data[0].id if data else None,
        "last_id": data[-1].id if data else None,
        "has_more": start + len(data) < len(entries),
    }
