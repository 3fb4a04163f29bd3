"""Principals: who sends a request."""

from dataclasses import dataclass

ALL_SCOPES = frozenset({"*"})


@dataclass(frozen=True, slots=True)
class Principal:
    """Sender of a request.

    tenant: owner of everything that is stored, cached and counted for the request; empty on a
    server without keys. name: tells the credentials of a tenant apart without revealing them.
    scopes: what the credential may be used for.
    """

    tenant: str
    name: str = ""
    scopes: frozenset[str] = ALL_SCOPES


ANONYMOUS = Principal("")
