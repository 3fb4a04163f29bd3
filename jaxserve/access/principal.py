"""Principals: who sends a request."""

import re
from dataclasses import dataclass

ALL_SCOPES = frozenset({"*"})
TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Hexadecimal digits of a key's digest that name the key: they reveal nothing of it.
KEY_ID_CHARS = 12


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

    def has_scope(self, scope: str) -> bool:
        """Return whether the credential may be used for this."""
        return scope in self.scopes or self.scopes == ALL_SCOPES


ANONYMOUS = Principal("")
