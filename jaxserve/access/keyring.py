"""API keys of the configuration, and the principals that keys authenticate."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Protocol

from jaxserve.access.api_key import digest_of, id_of
from jaxserve.access.principal import Principal


class Authenticator(Protocol):
    """A set of API keys."""

    def principal(self, secret: str) -> Principal | None:
        """Return the principal of a key as a header carries it, None if it is not valid."""
        ...


class Authenticators(Authenticator):
    """Sets of API keys in order; the first that knows a key decides."""

    def __init__(self, parts: Sequence[Authenticator]) -> None:
        self._parts = tuple(parts)

    def principal(self, secret: str) -> Principal | None:
        """See Authenticator."""
        return next(filter(None, (part.principal(secret) for part in self._parts)), None)


class Keyring(Authenticator):
    """The API keys of a server's configuration.

    names: the tenant of each key, in order; keys with one name belong to one tenant. Without names
    each key is a tenant of its own, named by the first digits of the key's digest.
    """

    def __init__(self, keys: Sequence[str], *, names: Sequence[str] = ()) -> None:
        self._principals: dict[bytes, Principal] = {}
        for position, key in enumerate(keys):
            digest = hashlib.sha256(key.encode()).digest()
            key_id = id_of(digest)
            tenant = names[position] if names else key_id
            self._principals[digest] = Principal(tenant, key_id)

    def principal(self, secret: str) -> Principal | None:
        """See Authenticator. The time this takes does not depend on how much of a key is right."""
        digest = digest_of(secret)
        found = None
        for known, principal in self._principals.items():
            if hmac.compare_digest(digest, known):
                found = principal
        return found

    @property
    def renamed_tenants(self) -> Mapping[str, str]:
        """The tenants that keys had before they were named, and the names they have now."""
        principals = self._principals.values()
        return {each.name: each.tenant for each in principals if each.tenant != each.name}
