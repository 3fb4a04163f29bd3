"""Store of responses."""

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from jaxserve.database import Database
from jaxserve.errors import InvalidRequestError, StorageError
from jaxserve.frontend.schema.parsing import show
from jaxserve.server.responses.answers import Response, ResponseError
from jaxserve.server.responses.items import response_of

# Maximum interval between two calls of `beat` for a response in progress.
BEAT_S = 0.5
SILENCE_S = 30.0
UNFINISHED = {"queued", "in_progress"}
# Timeout of recording that responses were read.
USE_TIMEOUT_S = 0.2

SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    previous TEXT,
    input BLOB NOT NULL,
    response BLOB NOT NULL,
    status TEXT NOT NULL,
    size INTEGER NOT NULL,
    beat_s REAL NOT NULL,
    used_ns INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS by_use ON responses (used_ns, size);
"""
# The least recently used responses are evicted when there are too many, or too many bytes.
EVICT = """
DELETE FROM responses WHERE id IN (
    SELECT id FROM (
        SELECT id, row_number() OVER newest AS count, sum(size) OVER newest AS bytes
        FROM responses WINDOW newest AS (ORDER BY used_ns DESC, id)
    ) WHERE count > ? OR bytes > ?
)
"""
CHAIN = """
WITH RECURSIVE chain (id, depth) AS (
    SELECT ?, 0
    UNION ALL
    SELECT previous, depth + 1 FROM chain JOIN responses USING (id)
    WHERE owner = ? AND previous IS NOT NULL
)
SELECT chain.id, input, response, status FROM chain LEFT JOIN responses
ON chain.id = responses.id AND owner = ? ORDER BY depth DESC
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored response, with the items of its input as JSON."""

    response: dict[str, Any]
    input: list[dict[str, Any]]


class ResponseStore:
    """Responses by id, limited in number and bytes, in a database that all processes share.

    tenant: owner; responses of other tenants do not exist for it. Call the methods on worker
    threads. Methods that name a response raise InvalidRequestError (404) if it does not exist.
    """

    def __init__(self, folder: Path, *, max_responses: int, max_bytes: int) -> None:
        self._database = Database(folder / "responses.sqlite", SCHEMA)
        self._bounds = (max_responses, max_bytes)

    def put(self, tenant: str, response: Response, input_items: list[dict[str, Any]]) -> None:
        """Store a response, which may be in progress. Deleted or cancelled responses stay so."""
        body, items = msgspec.json.encode(response), msgspec.json.encode(input_items)
        with self._database.transaction() as connection:
            now_ns = time.monotonic_ns()
            connection.execute(
                "INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    response.id,
                    tenant,
                    response.previous_response_id,
                    items,
                    body,
                    response.status,
                    len(body) + len(items),
                    now_ns / 1e9,
                    now_ns,
                ),
            )
            connection.execute(EVICT, self._bounds)

    def finish(self, response: Response) -> None:
        """Replace a response that was in progress, if it still exists."""
        body = msgspec.json.encode(response)
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE responses SET response = ?, status = ?, size = length(input) + ?"
                " WHERE id = ? AND status IN ('queued', 'in_progress')",
                (body, response.status, len(body), response.id),
            )
            connection.execute(EVICT, self._bounds)

    def beat(self, response_id: str) -> bool:
        """Record that a response is in progress; return whether it is still wanted."""
        with self._database.transaction() as connection:
            cursor = connection.execute(
                "UPDATE responses SET beat_s = ?"
                " WHERE id = ? AND status IN ('queued', 'in_progress')",
                (time.monotonic(), response_id),
            )
            return cursor.rowcount == 1

    def get(self, tenant: str, response_id: str) -> Stored:
        """Return a response. If its process has died, the response has failed."""
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT response, input, status, beat_s FROM responses WHERE id = ? AND owner = ?",
                (response_id, tenant),
            ).fetchone()
        if row is None:
            raise not_found(response_id, param="response_id")
        self._use([response_id])
        body = msgspec.json.decode(row["response"])
        if row["status"] in UNFINISHED and time.monotonic() - row["beat_s"] > SILENCE_S:
            error = ResponseError("server_error", "the process that made this response has ended")
            body |= {"status": "failed", "error": msgspec.to_builtins(error)}
        return Stored(body, msgspec.json.decode(row["input"]))

    def cancel(self, tenant: str, response_id: str) -> dict[str, Any]:
        """Cancel a response unless it is finished, and return it.

        The process that runs it notices at its next `beat`.
        """
        body = self.get(tenant, response_id).response
        if not body["background"]:
            raise InvalidRequestError(
                "Cannot cancel a synchronous response: only those with background=true",
                param="response_id",
            )
        if body["status"] not in UNFINISHED:
            return body
        body["status"] = "cancelled"
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE responses SET response = ?, status = 'cancelled'"
                " WHERE id = ? AND status IN ('queued', 'in_progress')",
                (msgspec.json.encode(body), response_id),
            )
        return self.get(tenant, response_id).response

    def delete(self, tenant: str, response_id: str) -> None:
        """Delete a response; responses that follow it can no longer be continued."""
        with self._database.transaction() as connection:
            cursor = connection.execute(
                "DELETE FROM responses WHERE id = ? AND owner = ?", (response_id, tenant)
            )
            if cursor.rowcount == 0:
                raise not_found(response_id, param="response_id")

    def conversation(self, tenant: str, response_id: str) -> list[dict[str, Any]]:
        """Return the inputs and outputs of a response and of all responses before it."""
        with self._database.reading() as connection:
            rows = connection.execute(CHAIN, (response_id, tenant, tenant)).fetchall()
        self._use([row["id"] for row in rows])
        items: list[dict[str, Any]] = []
        for row in rows:
            if row["response"] is None:
                raise not_found(row["id"], param="previous_response_id")
            if row["status"] in UNFINISHED:
                raise InvalidRequestError(
                    f"the response {show(row['id'])} is not finished",
                    param="previous_response_id",
                )
            items += msgspec.json.decode(row["input"])
            items += msgspec.json.decode(row["response"])["output"]
        return items

    def items(self, tenant: str, item_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return those of the items that exist, by id."""
        wanted = set(item_ids)
        response_ids = sorted(set(map(response_of, wanted)))
        found: dict[str, dict[str, Any]] = {}
        with self._database.reading() as connection:
            for response_id in response_ids:
                row = connection.execute(
                    "SELECT input, response FROM responses WHERE id = ? AND owner = ?",
                    (response_id, tenant),
                ).fetchone()
                if row is None:
                    continue
                items = msgspec.json.decode(row["input"])
                items += msgspec.json.decode(row["response"])["output"]
                found |= {item["id"]: item for item in items if item["id"] in wanted}
        self._use(response_ids)
        return found

    def _use(self, response_ids: Sequence[str]) -> None:
        """Record that responses were read. A failure of the storage is ignored.

        All responses of a conversation get the same time, so that they are evicted together.
        """
        now_ns = time.monotonic_ns()
        transaction = self._database.transaction(timeout_s=USE_TIMEOUT_S)
        with suppress(StorageError), transaction as connection:
            connection.executemany(
                "UPDATE responses SET used_ns = ? WHERE id = ?",
                [(now_ns, response_id) for response_id in response_ids],
            )


def not_found(response_id: str, *, param: str) -> InvalidRequestError:
    """Return the error for a response that is not stored; it begins with OpenAI's words."""
    is_asked_for = param == "response_id"
    subject = "Response" if is_asked_for else "Previous response"
    error = InvalidRequestError(
        f"{subject} with id {show(response_id)} not found. It was deleted, not stored, or"
        " evicted for newer ones.",
        param=param,
        code="not_found" if is_asked_for else "previous_response_not_found",
    )
    error.status = 404 if is_asked_for else 400
    return error
