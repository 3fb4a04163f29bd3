"""Store of API keys: a SQLite database that the processes of a server and the command line share.

The database has SHA-256 digests instead of keys. A digest needs no salt and no slow hash, because
keys are random: guessing one of 2**256 is as hard with its digest as without.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from jaxserve.access.api_key import (
    DEFAULT_SCOPES,
    SHOWN_CHARS,
    ApiKey,
    Scope,
    digest_of,
    id_of,
    new_secret,
)
from jaxserve.access.principal import TENANT, Principal
from jaxserve.database import Database, storage_faults
from jaxserve.errors import InvalidRequestError

MAX_NOTE_CHARS = 200
MAX_SHOWN_ID = 64
MAX_LIFETIME_S = 10 * 365 * 24 * 3600
SCHEMA = """
CREATE TABLE IF NOT EXISTS api_keys (
    digest BLOB PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    shown TEXT NOT NULL,
    tenant TEXT NOT NULL,
    scopes TEXT NOT NULL,
    note TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER
) WITHOUT ROWID;
"""


class KeyStore:
    """API keys in the database at `path`, which is created if it does not exist.

    Changes by any process take effect with the next request that any process authenticates. All
    methods, and the constructor, raise StorageError if the database cannot be used. clock: returns
    the Unix time in seconds.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        with storage_faults(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Only its owner may read who has access.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._database = Database(path, SCHEMA)
        self._clock = clock
        self._version: tuple[int, int] | None = None
        self._by_digest: dict[bytes, ApiKey] = {}

    def check(self) -> None:
        """Read the whole database. Raises StorageError if it is corrupt."""
        self._database.check()

    def principal(self, secret: str) -> Principal | None:
        """Return the principal of a key; None if it is unknown, revoked or expired.

        Takes microseconds while the database does not change. Only one thread may call this.
        """
        version = self._database.version()
        if version != self._version:
            with self._database.reading() as connection:
                rows = connection.execute("SELECT * FROM api_keys").fetchall()
            self._by_digest = {row["digest"]: _key(row) for row in rows}
            self._version = version
        found = self._by_digest.get(digest_of(secret))
        return found.principal if found is not None and found.is_valid(self._clock()) else None

    def create(
        self,
        tenant: str,
        *,
        scopes: Sequence[str] = DEFAULT_SCOPES,
        lifetime_s: int | None = None,
        note: str = "",
    ) -> tuple[str, ApiKey]:
        """Issue a key; return its text, which is kept nowhere, and its description.

        lifetime_s: seconds until it expires, None for never. Raises InvalidRequestError.
        """
        _check(tenant, scopes, lifetime_s, note)
        now = int(self._clock())
        made = ApiKey(
            id="",
            shown="",
            tenant=tenant,
            scopes=tuple(map(Scope, dict.fromkeys(scopes))),
            note=note,
            created_at=now,
            expires_at=None if lifetime_s is None else now + lifetime_s,
        )
        with self._database.transaction() as connection:
            return _insert(connection, made)

    def keys(self, tenant: str | None = None) -> list[ApiKey]:
        """Return all keys, or those of a tenant, in the order of their creation."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT * FROM api_keys WHERE :tenant IS NULL OR tenant = :tenant"
                " ORDER BY created_at, id",
                {"tenant": tenant},
            ).fetchall()
        return [_key(row) for row in rows]

    def revoke(self, key_id: str) -> ApiKey:
        """Revoke a key at once. Raises InvalidRequestError if there is no such key."""
        with self._database.transaction() as connection:
            found = _find(connection, key_id)
            if found.revoked_at is None:
                found = replace(found, revoked_at=int(self._clock()))
                _update(connection, found)
            return found

    def rotate(self, key_id: str, *, overlap_s: int) -> tuple[str, ApiKey]:
        """Replace a key by a new one with the same tenant, scopes, note and lifetime.

        The old key stays valid for `overlap_s` seconds. Returns the new key as `create` does.
        Raises InvalidRequestError if there is no such key, or if it is no longer valid.
        """
        _check_seconds("overlap_s", overlap_s, at_least=0)
        now = int(self._clock())
        with self._database.transaction() as connection:
            old = _find(connection, key_id)
            if not old.is_valid(now):
                raise InvalidRequestError(
                    f"key {key_id!r} is revoked or expired: create a new one", param="key_id"
                )
            lifetime_s = None if old.expires_at is None else old.expires_at - old.created_at
            ends = now + overlap_s
            expires_at = ends if old.expires_at is None else min(ends, old.expires_at)
            _update(connection, replace(old, expires_at=expires_at))
            new_end = None if lifetime_s is None else now + lifetime_s
            return _insert(connection, replace(old, created_at=now, expires_at=new_end))


def _check(tenant: str, scopes: Sequence[str], lifetime_s: int | None, note: str) -> None:
    """Raise InvalidRequestError for an invalid description of a key."""
    if not TENANT.fullmatch(tenant):
        raise InvalidRequestError(
            f"tenant must be up to 64 letters, digits and any of . _ -, got {tenant!r}",
            param="tenant",
        )
    unknown = [scope for scope in scopes if scope not in set(Scope)]
    if unknown or not scopes:
        raise InvalidRequestError(
            f"scopes must be one or more of {', '.join(Scope)}, got {list(scopes)}", param="scopes"
        )
    if lifetime_s is not None:
        _check_seconds("lifetime_s", lifetime_s, at_least=1)
    if len(note) > MAX_NOTE_CHARS or not note.isprintable():
        raise InvalidRequestError(
            f"note must be at most {MAX_NOTE_CHARS} printable characters, got {len(note)}",
            param="note",
        )


def _check_seconds(name: str, value: int, *, at_least: int) -> None:
    if not at_least <= value <= MAX_LIFETIME_S:
        raise InvalidRequestError(
            f"{name} must be in [{at_least}, {MAX_LIFETIME_S}], got {value}", param=name
        )


def _find(connection: sqlite3.Connection, key_id: str) -> ApiKey:
    row = connection.execute("SELECT * FROM api_keys WHERE id = ?", (key_id,)).fetchone()
    if row is None:
        error = InvalidRequestError(
            f"there is no key {key_id[:MAX_SHOWN_ID]!r}", param="key_id", code="not_found"
        )
        error.status = 404
        raise error
    return _key(row)


def _insert(connection: sqlite3.Connection, made: ApiKey) -> tuple[str, ApiKey]:
    """Add a key with a new secret; return the secret and the key with its id."""
    while True:
        secret = new_secret()
        digest = digest_of(secret)
        made = replace(made, id=id_of(digest), shown=secret[:SHOWN_CHARS], revoked_at=None)
        # Ids are short, so two may be equal, once in many millions of keys.
        with contextlib.suppress(sqlite3.IntegrityError):
            connection.execute(
                "INSERT INTO api_keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    digest,
                    made.id,
                    made.shown,
                    made.tenant,
                    " ".join(made.scopes),
                    made.note,
                    made.created_at,
                    made.expires_at,
                    made.revoked_at,
                ),
            )
            return secret, made


def _update(connection: sqlite3.Connection, key: ApiKey) -> None:
    connection.execute(
        "UPDATE api_keys SET expires_at = ?, revoked_at = ? WHERE id = ?",
        (key.expires_at, key.revoked_at, key.id),
    )


def _key(row: sqlite3.Row) -> ApiKey:
    return ApiKey(
        id=row["id"],
        shown=row["shown"],
        tenant=row["tenant"],
        scopes=tuple(map(Scope, row["scopes"].split())),
        note=row["note"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
    )
