"""Handlers of /v1/admin/keys: API keys of a server with a key store."""

import dataclasses
from functools import partial

import msgspec
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from jaxserve.access.api_key import DEFAULT_SCOPES, ApiKey, Scope
from jaxserve.access.key_store import KeyStore
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.schema.body import Body
from jaxserve.server.http.answer import json_response
from jaxserve.server.http.bodies import read_as
from jaxserve.server.http.lanes import run_in
from jaxserve.server.state import server_state

DEFAULT_OVERLAP_S = 24 * 3600


class KeyBody(Body):
    """The body of POST /v1/admin/keys."""

    tenant: str
    scopes: list[str] = Field(default_factory=lambda: [str(scope) for scope in DEFAULT_SCOPES])
    lifetime_s: int | None = None
    note: str = ""


class RotationBody(Body):
    """The body of POST /v1/admin/keys/{id}/rotate."""

    overlap_s: int = DEFAULT_OVERLAP_S


class KeyAnswer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A key, with its text in the answer that creates it."""

    id: str
    shown: str
    tenant: str
    scopes: tuple[Scope, ...]
    note: str
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    key: str | None = None
    object: str = "api_key"

    @classmethod
    def of(cls, key: ApiKey, secret: str | None = None) -> "KeyAnswer":
        """Return the answer for a key."""
        return cls(**dataclasses.asdict(key), key=secret)


class KeyList(msgspec.Struct):
    """The keys of a server."""

    data: list[KeyAnswer]
    object: str = "list"


async def create_key(http: Request) -> Response:
    """Issue a key."""
    body, store = await read_as(http, KeyBody), _store(http)
    create = partial(
        store.create, body.tenant, scopes=body.scopes, lifetime_s=body.lifetime_s, note=body.note
    )
    secret, key = await run_in(server_state(http).lanes.storage, create)
    return json_response(KeyAnswer.of(key, secret))


async def list_keys(http: Request) -> Response:
    """Answer with all keys, or those of the `tenant` in the query."""
    find = partial(_store(http).keys, http.query_params.get("tenant"))
    keys = await run_in(server_state(http).lanes.storage, find)
    return json_response(KeyList([KeyAnswer.of(key) for key in keys]))


async def revoke_key(http: Request) -> Response:
    """Revoke a key at once."""
    revoke = partial(_store(http).revoke, http.path_params["key_id"])
    return json_response(KeyAnswer.of(await run_in(server_state(http).lanes.storage, revoke)))


async def rotate_key(http: Request) -> Response:
    """Replace a key by a new one; the old one stays valid for a while."""
    body, store = await read_as(http, RotationBody), _store(http)
    rotate = partial(store.rotate, http.path_params["key_id"], overlap_s=body.overlap_s)
    secret, key = await run_in(server_state(http).lanes.storage, rotate)
    return json_response(KeyAnswer.of(key, secret))


def _store(http: Request) -> KeyStore:
    store = server_state(http).keys
    if store is None:
        error = InvalidRequestError(
            "this server has no key store: start it with --key-store", param=None, code="not_found"
        )
        error.status = 404
        raise error
    return store
